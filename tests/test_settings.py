"""Settings: what may be set, what each network starts from, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch

from cwf_milvus.encode.settings import EncoderSettings, default_settings
from cwf_milvus.errors import SettingsError

FIELDS = [field.name for field in dataclasses.fields(EncoderSettings)]


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "vgg16", "vgg16_cam", "resnet50"])
def test_every_backbone_has_settings_to_start_from(backbone):
    settings = default_settings(backbone)
    assert settings.backbone == backbone
    assert settings.image_size >= 512


def test_the_papers_network_starts_from_the_papers_settings():
    settings = default_settings("vgg16_cam")
    assert (settings.image_size, settings.resize) == (720, "shortest")
    assert settings.class_image_size is None
    assert (settings.dim, settings.n_pooled, settings.n_fit_classes) == (512, 64, 1)
    assert settings.class_whiten_power == 0.5
    assert settings.paper_compat is False


def test_a_change_replaces_a_networks_default_and_leaves_the_others():
    changed = default_settings("efficientnet_lite2", n_classes=16)
    assert changed == dataclasses.replace(default_settings("efficientnet_lite2"), n_classes=16)
    assert changed.image_size == 640


def test_settings_cannot_be_changed_behind_the_encoders_back():
    with pytest.raises(dataclasses.FrozenInstanceError):
        default_settings("vgg16").dim = 3


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("image_size", 31, "from 32 to 8192 pixels"),
        ("image_size", 51200, "from 32 to 8192 pixels"),
        ("image_size", None, "from 32 to 8192 pixels"),
        ("image_size", 512.5, "from 32 to 8192 pixels"),
        ("class_image_size", 16, "or None for the features' view"),
        ("class_image_size", "224", "or None for the features' view"),
        ("n_classes", 0, "a whole number of at least 1"),
        ("n_pooled", -1, "a whole number of at least 1"),
        ("n_fit_classes", 0, "a whole number of at least 1"),
        ("dim", 0, "a whole number of at least 1"),
        ("dim", "512", "a whole number of at least 1"),
        ("resize", "widest", "'longest', 'shortest', 'squash'"),
        ("descriptor", "all", "'classes', 'regions', 'both'"),
        ("feature_weighting", "CroW", "None, 'crow'"),
        ("region_levels", (), "such as (1, 2, 3)"),
        ("region_levels", (1, 0), "such as (1, 2, 3)"),
        ("region_levels", 3, "such as (1, 2, 3)"),
        ("region_levels", (33,), "at most 1024 regions in all"),
        ("class_whiten_power", 1.5, "a number from 0 to 1"),
        ("class_whiten_power", math.nan, "a number from 0 to 1"),
        ("region_whiten_power", "half", "a number from 0 to 1"),
        ("classes", (), "None for each image's own"),
        ("classes", (3, -1), "None for each image's own"),
        ("classes", (3, 4, 3), "each once"),
        ("classes", "tabby", "class ids"),
        ("class_share", -0.1, "a number from 0 to 1"),
        ("cam_regions", "no", "True or False"),
        ("region_channel_weights", None, "True or False"),
        ("paper_compat", 1, "True or False"),
        ("backbone", None, "give a name"),
        ("layer", 5, "give a name"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_what_can(name, value, remedy):
    with pytest.raises(SettingsError) as caught:
        EncoderSettings(**{name: value})
    assert str(caught.value).startswith(f"{name}={value!r}: ")
    assert remedy in str(caught.value)


def test_a_setting_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(SettingsError, match=r"unknown settings colour, size: .*image_size"):
        default_settings("vgg16", size=512, colour="red")


def test_all_classes_may_be_asked_for_without_counting_them():
    assert EncoderSettings(n_classes=sys.maxsize).n_classes == sys.maxsize


def test_settings_come_back_equal_from_json():
    settings = EncoderSettings(
        layer="conv5_2", classes=(4, 2), region_levels=(1, 4), class_image_size=None, dim=7
    )
    assert EncoderSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_numpys_numbers_and_lists_are_equal_to_plain_ones_also_in_json():
    plain = EncoderSettings(dim=256, classes=(5, 1), region_levels=(1, 2), class_whiten_power=0.0)
    given = EncoderSettings(
        dim=np.int64(256),
        classes=np.array([5, 1]),
        region_levels=[1, torch.tensor(2)],
        class_whiten_power=np.float32(0),
    )
    assert given == plain
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())


@pytest.mark.parametrize("name", FIELDS)
def test_json_of_any_kind_gives_settings_or_a_settings_error(name):
    hostile = [None, True, -1, 0, 1, 10**30, 1e300, math.inf, "", "x", [], [[]], {}, {"a": 1}]
    for value in [*hostile, [0] * 5, ["1"], [None], [1e9], [10**30]]:
        try:
            settings = EncoderSettings.from_dict({name: value})
        except SettingsError:
            continue
        assert EncoderSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings

"""By which model a collection tells certainty: its own, or the one that ships."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.method.certainty import CertaintyModel
from cwf_milvus.store.sidecar import Sidecar

_NOTE = "certainty"


def shipped_model(fingerprint: str) -> CertaintyModel | None:
    """Return the model that the package ships for an encoder; None where there is none.

    Args:
        fingerprint: the encoder's: scores of any other settings mean something else.
    """
    fingerprints, model = _shipped()
    return model if fingerprint in fingerprints else None


def model_of(sidecar: Sidecar) -> CertaintyModel | None:
    """Return the model of a collection: its own, else the one that ships for its encoder, or None.

    Raises:
        CollectionError: its own is damaged.
    """
    try:
        noted = sidecar.note_of(_NOTE)
        if noted is not None:
            return CertaintyModel.from_json(json.dumps(noted))
    except (CollectionError, SettingsError) as error:
        raise CollectionError(
            f"the calibration of {sidecar.collection!r} is damaged ({error}): drop it with "
            "`cwf-milvus calibrate --undo`, then calibrate again"
        ) from error
    return shipped_model(sidecar.manifest["fingerprint"])


def keep_model(sidecar: Sidecar, model: CertaintyModel | None) -> None:
    """Keep a model with a collection, in place of the one that it has; None to drop that.

    Raises:
        StoreError: Milvus failed.
    """
    sidecar.write_note(_NOTE, None if model is None else json.loads(model.to_json()))


@cache
def _shipped() -> tuple[frozenset[str], CertaintyModel]:
    text = (resources.files("cwf_milvus") / "data" / "certainty.json").read_text("utf-8")
    values = json.loads(text)
    model = CertaintyModel.from_json(json.dumps(values["model"]), "the shipped certainty model")
    return frozenset(values["fingerprints"]), model

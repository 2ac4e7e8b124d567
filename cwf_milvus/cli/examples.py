"""Two examples of every command, for its help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, str]] = {
    "demo": ("demo", "demo --folder /tmp/demo --quiet"),
    "index": (
        "index photos/ --uri photos.db",
        "index photos/ scans/*.tif --exif --prune --report report.csv",
    ),
    "search": (
        "search query.jpg --box 279,100,601,862 --html hits.html",
        "search --like photos/cup.jpg --filter 'year > 2015' --show year --limit 50",
    ),
    "serve": ("serve --uri photos.db --open", "serve --collection holiday work --port 9000"),
    "augment": ("augment", "augment --neighbours 5 --alpha 2"),
    "graph": ("graph", "graph --neighbours 20 --no-verify"),
    "neighbours": ("neighbours photos/cup.jpg", "neighbours photos/cup.jpg --limit 3 --json"),
    "duplicates": ("duplicates", "duplicates --collection holiday --json"),
    "calibrate": ("calibrate gnd.json --root photos/", "calibrate --undo"),
    "list": ("list --uri photos.db", "list --uri http://localhost:19530 --json"),
    "info": ("info", "info --uri ~/photos.db --collection holiday --json"),
    "verify": ("verify", "verify --files"),
    "repair": ("repair", "repair --into whole.db --metadata photos/metadata.csv"),
    "backup": ("backup photos.cwf", "backup /media/disk/holiday.cwf --collection holiday"),
    "restore": ("restore photos.cwf --uri new.db", "restore holiday.cwf --collection again"),
    "copy": (
        "copy photos.db http://localhost:19530",
        "copy photos.db photos.db --collection holiday --as trip",
    ),
    "export": ("export --parquet out/", "export --parquet out/ --uri photos.db --collection trip"),
    "import": (
        "import out/ --uri http://localhost:19530",
        "import out-1/ out-2/ --uri http://localhost:19530 --index HNSW,M=32,efConstruction=400",
    ),
    "remove": ("remove photos/cup.jpg", "remove --all --collection holiday"),
    "relocate": (
        "relocate /media/old /media/new",
        "relocate photos/a.jpg photos/b.jpg --uri photos.db",
    ),
    "classes": ("classes photo.jpg", "classes photo.jpg --box 80,14,478,390 -n 3"),
    "explain": ("explain photo.jpg", "explain photo.jpg --box 80,14,478,390 -o maps.png"),
    "evaluate": (
        "evaluate gnd.json --rerank regions --expand local:3",
        "evaluate oxford5k --root oxford/ --whiten-from paris/ --table 1a --markdown table.md",
    ),
    "backbones": ("backbones", "backbones --json"),
    "convert-weights": (
        "convert-weights vgg_cam_weights.h5 vgg16_cam.safetensors",
        "convert-weights vgg16CAM.caffemodel vgg16_cam.safetensors",
    ),
    "towhee": ("towhee install", "towhee uninstall --home /srv/towhee"),
    "completion": (
        "completion bash > ~/.local/share/bash-completion/completions/cwf-milvus",
        "completion zsh > ~/.zfunc/_cwf-milvus",
    ),
}
"""Name of a command to what follows the program's name."""

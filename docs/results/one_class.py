"""A data folder with one class against the rest, or with the masks of one rater alone: two classes, one of them rare.

python docs/results/one_class.py DATA/camvid OUT --only pedestrian
python docs/results/one_class.py DATA/lidc OUT --rater 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from segmint.data.classes import read_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="name of the class")
    parser.add_argument("--rater", type=int)
    args = parser.parse_args()
    source, out = args.data.resolve(), args.out
    out.mkdir(parents=True)
    for name in ("images", "splits"):
        (out / name).symlink_to(source / name)
    classes = read_classes(source / "classes.yaml")
    values = {"ignore": classes.ignore, "classes": [{"id": 0, "name": "rest"}, {"id": 1, "name": args.only or "found"}]}
    (out / "classes.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for path in sorted((source / "masks").rglob("*.png")):
        place = path.relative_to(source / "masks")
        if args.rater is not None:
            if path.stem != str(args.rater):
                continue
            place = place.parent.with_suffix(".png")
        mask = np.array(Image.open(path))
        if args.only is not None:
            wanted = classes.ids[classes.names.index(args.only)]
            mask = np.where(mask == classes.ignore, classes.ignore, mask == wanted).astype(np.uint8)
        (out / "masks" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(out / "masks" / place)


if __name__ == "__main__":
    main()

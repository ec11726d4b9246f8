"""The demo's pictures: several hundred drawings of OpenMoji in one archive, with what each of them shows.

    npm pack openmoji@17.0.0 && tar xzf openmoji-17.0.0.tgz
    python -m tools.demo_pictures package

It renders the drawings with Chromium and writes `openmoji.zip` and the licence into neat_backend/demo/pictures/.
OpenMoji's own groups say what a drawing shows. Left out are drawings that people would answer in different ways (a
cat's paw, a smiling cat, a horse race), brands, and those that look all alike: families, hours, variants of skin and
gender.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parents[1] / "neat_backend" / "demo" / "pictures"
SIDE = 192  # pixels
COLUMNS = 20  # of the page that is rendered
COLOURS = 32  # of a drawing: flat areas and their edges need no more, and take half the space
MOST_OF_A_SUBGROUP = 24  # drawings that are none of the wanted
MOMENT = (2025, 1, 1, 0, 0, 0)  # of the files in the archive, so that it comes out the same

WANTED = {
    "animal": re.compile(r"animals?-"),
    "person": re.compile(r"person(?!-symbol)"),
    "vehicle": re.compile(r"transport-(air|ground|water)"),
}
OTHERS = re.compile(r"(activities|animals-nature|flags|food-drink|objects|people-body|smileys-emotion|travel-places)/")
# What people would not answer alike, or not care to see. Of names and of groups.
LEFT_OUT = re.compile(
    r"""\b(feather|wing|spider\ web|microbe|paw\ prints|pig\ nose|spiral\ shell|coral|poppy|worm
    |parachute|seat|satellite|station|wheelchair|skateboard|roller\ skate|bus\ stop|motorway|railway\ track|oil\ drum
    |fuel\ pump|wheel|police\ car\ light|traffic\ light|stop\ sign|construction|anchor|ring\ buoy|sled|shopping\ cart
    |horse\ racing|carousel\ horse|biking|rowing|dolls|teddy\ bear|piñata|carp\ streamer|chess\ pawn|puppet|snowman
    |moai|Statue\ of\ Liberty|baby\ angel|genie|hairy\ creature|merperson|troll|zombie|levitating|bunny\ ears
    |o’clock|thirty|middle\ finger|kiss|kissing|love\ hotel|coffin|headstone|urn|cigarette|bikini|briefs|pregnant
    |cat-face|monkey-face|face-costume|family|person-symbol)\b""",
    re.VERBOSE,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="The folder of OpenMoji's npm package, unpacked.")
    package: Path = parser.parse_args().package
    drawings = chosen(json.loads((package / "data" / "openmoji.json").read_text()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    write(FOLDER / "openmoji.zip", drawings, rendered(package / "color" / "svg", [one["hexcode"] for one in drawings]))
    shutil.copyfile(package / "LICENSE.txt", FOLDER / "LICENSE.txt")
    counts = {name: sum(one["choice"] == name for one in drawings) for name in (*WANTED, "")}
    print(f"{len(drawings)} drawings {counts}, {(FOLDER / 'openmoji.zip').stat().st_size / 1e6:.2f} MB")


def chosen(emoji: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """All drawings of the wanted classes and some of all others: hexcode, name, subgroup and choice of each."""
    wanted: list[dict[str, str]] = []
    others: dict[str, list[dict[str, str]]] = defaultdict(list)
    names: set[str] = set()
    for one in emoji:
        group, name = f"{one['group']}/{one['subgroups']}", str(one["annotation"])
        variant = one["skintone"] or re.search("2640|2642", one["hexcode"]) or re.match(r"(wo)?man ", name)
        if variant or LEFT_OUT.search(name) or LEFT_OUT.search(group) or name in names:
            continue
        choice = next((choice for choice, groups in WANTED.items() if groups.match(one["subgroups"])), "")
        drawing = {"hexcode": one["hexcode"], "name": name, "group": group, "choice": choice}
        if choice:
            wanted.append(drawing)
        elif OTHERS.match(group):
            others[group].append(drawing)
        else:
            continue
        names.add(name)
    rng = np.random.default_rng(0)
    for drawings in others.values():
        wanted += [drawings[at] for at in sorted(rng.permutation(len(drawings))[:MOST_OF_A_SUBGROUP])]
    return wanted


def rendered(folder: Path, hexcodes: Sequence[str]) -> list[Image.Image]:
    """Each drawing on white, SIDE pixels wide and high."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    cells = "".join((folder / f"{code}.svg").read_text() for code in hexcodes)
    style = f"body {{ margin: 0; width: {COLUMNS * SIDE}px; font-size: 0 }} svg {{ width: {SIDE}px; height: {SIDE}px }}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": COLUMNS * SIDE, "height": SIDE})
        page.set_default_timeout(0)  # a thousand drawings take a slow machine a minute
        page.set_content(f"<style>{style}</style>{cells}")
        sheet = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        browser.close()
    corners = [(SIDE * (at % COLUMNS), SIDE * (at // COLUMNS)) for at in range(len(hexcodes))]
    return [sheet.crop((left, top, left + SIDE, top + SIDE)) for left, top in corners]


def write(path: Path, drawings: Sequence[Mapping[str, str]], pictures: Sequence[Image.Image]) -> None:
    """The archive: NAME.webp of each drawing, and pictures.csv."""
    table = io.StringIO()
    rows = csv.DictWriter(table, ("file", "choice", "name", "group"), lineterminator="\n")
    rows.writeheader()
    with zipfile.ZipFile(path, "w") as archive:
        for drawing, picture in zip(drawings, pictures, strict=True):
            encoded = io.BytesIO()
            few = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
            few.save(encoded, "WEBP", lossless=True, method=6)
            file = f"{drawing['hexcode']}.webp"
            archive.writestr(zipfile.ZipInfo(file, MOMENT), encoded.getvalue())
            rows.writerow({"file": file, **{name: drawing[name] for name in ("choice", "name", "group")}})
        archive.writestr(zipfile.ZipInfo("pictures.csv", MOMENT), table.getvalue(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()

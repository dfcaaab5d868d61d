#!/usr/bin/env python3
"""Fetch the recordings of the hearing benchmark and say what each one is.

Debian's games and sound themes ship thousands of recorded doors, steps, voices, tools and animals. The packages named
here are downloaded with ``apt-get download`` (no installation, no root) into a folder, and their sound files unpacked.
A file's class follows from its package and path by the first rule that matches; what no rule names is not used.
Takes of one sound (``door_open1.ogg``, ``door_close2.ogg``) form a group, which is never divided between splits.
Nothing of this is ever committed: the licences are the packages' own, shown with every sound by

    python benchmarks/hearing_sounds.py FOLDER [--list]
"""

import argparse
import hashlib
import re
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGES = """7kaa-data asterisk-core-sounds-en-wav asterisk-core-sounds-fr-wav asterisk-core-sounds-it-wav asterisk-core-sounds-ru-wav btanks-data
bucklespring-data deepin-sound-theme enigma-data fillets-ng-data flare-game freedink-data freedroid-data freedroidrpg-data
frozen-bubble-data glob2-data hedgewars-data hydrogen-drumkits-effects klettres-data ktuberling-data lincity-ng-data lomiri-sounds lordsawar-data
megaglest-data minetest-data minetest-mod-homedecor minetest-mod-mesecons minetest-mod-nether minetest-mod-xdecor openarena-data
oxygen-sounds pingus-data plee-the-bear-data pysiogame simutrans-pak64 sound-icons sound-theme-freedesktop supertux-data
tuxpaint-data tuxpaint-stamps-default tuxtype-data ufoai-sound unknown-horizons wesnoth-1.16-data widelands-data
yaru-theme-sound""".split()

SUFFIXES = (".ogg", ".oga", ".wav", ".flac")

# Files that would be called by a wrong name, or by two: robots and spells, steps in water, empty and synthetic sounds.
UNUSED = (
    r"laugh|giggle|silence|dummy|magic|laser|plasma|teleport|portal|beep|/tone|-miss|_step\d+water|water_footstep|footsteps/(splash|water|energy|hitground|crouch|stand)|bloodspider|devtest|colobot|firestation|hell_|hit-chest|homedecor_book|screenshot|planewater|waterbullet|fanfare|oddly|tree_howling|openarena.*/items/|"  # noqa: E501
    r"hedgewars/data/sounds/voices/robot|bot_sounds|doorbell_|rubberduck|wizball|underwater|explosion-smoke"
)

# (class, pattern of "package/path" in lower case): the first that matches counts.
RULES = (
    ("Talking", r"_desc[_.]|^asterisk|^klettres|^ktuberling.*/sounds/|npcs/|/voice/|^fillets.*/sound/.*/(cs|nl|en|de)/|voices/(festivox|rott)"),
    ("Music playing", r"/music/|/zik/|/tunes/|amidst_the|chiptune|ride_of_the"),
    ("Groaning or screaming", r"voices/.*/(ow\d|ooff\d|ouch|nooo|poisonmoan)|/(soldiers|civilians)/|/human[-a-z]*-(hit|die)|/(groan|ugg)\.|sarge/(pain|death|fall)|soundfx/(fe)?male_(hit|die)|scream_sound|/deadman|moan\d|(archer|guard|swordman|worker|horseman|technician|warrior|spearman)_die"),  # noqa: E501
    ("Walking", r"footstep|/steps/step|/footsteps/|man-steps|hedgewars.*/steps\.|/stairs"),
    ("Ringing of a bell or phone", r"bell\.|chime|phone|alarm|/notifications/|/ringtones/|chapel|oxygen-im-|stereo/(message|complete|service)"),
    ("Opening or closing a door", r"doors?_|/doors/|gate_|fencegate|window(open|close)|chest_|open-chest|wood_open|freedink.*/open\.|/dr1_|/door|turnkey|creak|piston"),  # noqa: E501
    ("Fire burning", r"mods/fire/fire_(fire|large|small)|fake_fire/.*small|open_fire|campfire|soundfx/powers/burn|ambience/(small)?fire|world/fire|firesoft|lincity.*/fire|supertux.*/(flame|fire)\.|7kaa.*/fire|furnace|gunpowder_burn|wicker_fire|flamer|flamethrower|blowtorch|freedink.*/burn"),  # noqa: E501
    ("Water running or splashing", r"/water|_water|faucet|shower|toilet|river|splash|waterfall|parklandlake|water-|fountain"),
    ("Bird singing or calling", r"animals/birds|animals/bird\d|/duck|ambient/birds|/(forest_)?owl|twitter|raven|seagull|canary|chicken|eagle_(ack|select|die)|woodpecker|/bird\d"),  # noqa: E501
    ("Typing on a keyboard", r"^bucklespring|keyclick|typewriter\."),
    (
        "",
        r"/(rain|wind|night|nightime|day|desertday|city|swamp|horror|space|arctic|desert|ship|market\w+|residential\w+|powerline|"
        r"main_square|\w*drone\w*|neonhum|hum|lg_hum|arcticwind|alienatmo|"
        r"alien-ventilation|city_abnd\w*|droning_\w+|lights_loop|sand-city|tv_static|ufo_night_atm|ambience|curnt|demonwind|crickets\d|cricket_loop|"
        r"wind_loop|cave_wind_loop)[\d_]*\.[a-z]+$",
    ),
)
BACKGROUND = ""

# Of a recording session with hundreds of takes (a voice reading numbers) so many are used.
MOST_TAKES = 40


@dataclass(frozen=True)
class Sound:
    """One recording: its ``path``, the ``package`` it comes from, its class (``label``, empty for background) and its ``group``."""

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
        language = re.search(r"_desc(_[a-z]+)?", stem)
        return f"{name.partition('/')[0]} {language.group(1) or '_en'}" if language else re.sub(r"/(alpha|syllab|digits|letters|phonetic|dictate|followme)$", "", folder)  # noqa: E501
    if "guitarstrums" in name:  # a chord, strummed in many ways
        return stem.partition("_")[0]
    if "voices/" in name:
        return folder + ":" + label
    if label == "Music playing":
        return folder + "/" + stem
    stem = re.sub(r"[._\s-]*\d+[a-z]?$", "", stem)
    stem = re.sub(r"[._\s-]*(open|close|start|strt|stop|end|push|pop|extend|retract|up|down|ack|die|select|hit|attack|standing|hurt|death)+\d*$", "", stem)
    return folder + "/" + stem.rstrip("._ -")


def fetch(folder):
    """Download and unpack the packages into ``folder``, unless they are there."""
    folder = Path(folder).absolute()
    for package in PACKAGES:
        unpacked = folder / package
        if unpacked.exists():
            continue
        downloads = folder / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        if not list(downloads.glob(f"{package}_*.deb")):
            print(f"downloading {package}", file=sys.stderr)
            done = subprocess.run(["apt-get", "download", "-q", package], cwd=downloads, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"  left out: {done.stderr.strip().splitlines()[-1]} (apt-get update, and a Debian or Ubuntu with this package)", file=sys.stderr)
                continue
        deb = next(downloads.glob(f"{package}_*.deb"))
        partial = folder / f"{package}.partial"
        subprocess.run(["dpkg-deb", "-x", str(deb), str(partial)], check=True)
        for archive in partial.rglob("*.pk3"):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(archive.parent, [name for name in packed.namelist() if name.lower().endswith(SUFFIXES)])
        for path in partial.rglob("*"):
            if path.is_symlink() or path.is_file() and path.suffix.lower() not in SUFFIXES and path.name != "copyright":
                path.unlink()
        partial.rename(unpacked)
        deb.unlink()


def find_sounds(folder):
    """Return the ``Sound`` of every file in ``folder`` that a rule names, at most ``MOST_TAKES`` a group, in a fixed order."""
    folder = Path(folder)
    groups, seen = defaultdict(list), set()
    for path in sorted(folder.glob("*/**/*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        package, _, rest = path.relative_to(folder).as_posix().partition("/")
        name = package + "/" + re.sub(r"^usr/share/|games/", "", rest).lower()
        label = label_of(name)
        if label is not None:
            content = hashlib.sha256(path.read_bytes()).digest()
            if content in seen:  # the same recording under another name, or in another package
                continue
            seen.add(content)
            groups[label, group_of(name, label)].append(Sound(path, package, label, group_of(name, label)))
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
        print(f"{label or '(background)':32s} {count:5d} sounds {len({s.group for s in sounds if s.label == label}):4d} groups")


if __name__ == "__main__":
    main()

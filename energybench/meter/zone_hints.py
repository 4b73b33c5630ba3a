"""What to type instead of a zone that is not known: one right word, or what there is; never a guess between two.

Asked only where there is an error, so it may read every table.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from energybench.common.errors import LONGEST_WORD
from energybench.meter import cloud_regions
from energybench.meter.grid import PARTED, PROVIDERS, alpha_2, alpha_3, canonical, clouds, countries, find, parts, the

FORMS = "a country such as FR or FRA, a part of one such as US-CA, or a cloud's region such as aws:eu-west-3"
OWN_FIGURE = 'give your own: intensity = "56 g/kWh" in the suite, --intensity "56 g/kWh" in report --carbon'
LARGER = {  # what is larger than a grid
    "european union": ("eu", "eu27", "eu 27", "europe", "european union"),
    "world": ("world", "global", "earth", "worldwide", "international"),
}
ALSO = {  # names that neither ISO 3166 nor codecarbon has
    **dict.fromkeys(("america", "united states of america", "usofa", "u s", "u s a", "us of a"), "USA"),
    **dict.fromkeys(("great britain", "britain", "u k"), "GBR"),
    **dict.fromkeys(("holland", "the netherlands"), "NLD"),
    **dict.fromkeys(("burma",), "MMR"),
    **dict.fromkeys(("czech republic",), "CZE"),
    **dict.fromkeys(("ivory coast",), "CIV"),
    **dict.fromkeys(("korea", "republic of korea"), "KOR"),
    **dict.fromkeys(("el", "hellas"), "GRC"),  # EL is the European Union's code for Greece
    **dict.fromkeys(("deutschland", "ger"), "DEU"),
}
PROVIDER_NAMES = {
    **dict.fromkeys(("amazon", "ec2", "amazon web services"), "aws"),
    **dict.fromkeys(("az", "microsoft", "ms"), "azure"),
    **dict.fromkeys(("google", "gcloud", "gce", "google cloud"), "gcp"),
}


def hint(written: str) -> str:
    """What to type in place of `written`, which is no known zone."""
    text = " ".join(written.split())[:LONGEST_WORD]
    for explain in (_larger, _region, _part, _without_figure, _name, _other_spelling, _misspelt):
        if text and (found := explain(text)):
            return found
    return f"name {FORMS}"


def _did_you_mean(zones: list[str]) -> str:
    """With the name of each, so that two that share one can be told apart."""
    named = [f"'{zone}' ({_name_of(zone)})" for zone in dict.fromkeys(zones)]
    return f"did you mean {' or '.join(named)}?" if 0 < len(named) <= 3 else ""


def _name_of(zone: str) -> str:
    known = find(zone)
    if known is None:
        return zone
    name, figure = known
    _, place = cloud_regions.placed().get(name, ("", figure.place))
    return ", ".join(dict.fromkeys(part for part in (place, figure.name) if part))


def _plain(text: str) -> str:
    """Letters and digits in lower case without accents, words parted by a space."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", bare.casefold()))


# ── one explanation after the other ───────────────────────────────────────────────────────────────────────


def _larger(text: str) -> str:
    for name, words in LARGER.items():
        if _plain(text) in words:
            what = "the European Union" if name == "european union" else "the world"
            return f"codecarbon's tables have no figure for {what}: name a country, such as FRA or DEU, or {OWN_FIGURE}"
    return ""


def _region(text: str) -> str:
    """A cloud's region without its provider, of a provider by another name, or mistyped."""
    provider, colon, region = (part.strip() for part in text.lower().partition(":"))
    provider = PROVIDER_NAMES.get(provider, provider)
    if not colon:
        return _bare_region(text.lower())
    if owners := _owners(region):
        return _did_you_mean(owners)
    if provider not in PROVIDERS:
        return _other_spelling(text) or f"regions are known of {', '.join(PROVIDERS)}: name {FORMS}"
    import difflib

    known = _regions_of(provider)
    close = difflib.get_close_matches(region, known, n=3, cutoff=0.75)
    listed = ", ".join(close or sorted(known))
    return f"{PROVIDERS[provider]}'s regions {'like it' if close else 'here'} are {listed}; or {OWN_FIGURE}"


def _bare_region(text: str) -> str:
    """Without a colon: "eu-west-3", "aws eu-west-3", "aws"."""
    head, _, tail = re.sub(r"[ /_.-]", " ", text, count=1).partition(" ")
    provider = PROVIDER_NAMES.get(head, head)
    if provider not in PROVIDERS:
        return _did_you_mean(_owners(text))
    if not tail:
        return f"name a region of {PROVIDERS[provider]} too: {provider}:{_regions_of(provider)[0]}"
    return _did_you_mean([zone for zone in _owners(tail) if zone.startswith(f"{provider}:")])


def _regions_of(provider: str) -> list[str]:
    zones = {**cloud_regions.placed(), **clouds()}
    return [zone.partition(":")[2] for zone in zones if zone.startswith(f"{provider}:")]


def _owners(region: str) -> list[str]:
    """Every zone of that region's name, or of that availability zone's."""
    names = _zoneless(region.replace(" ", ""))
    return [zone for zone in {**cloud_regions.placed(), **clouds()} if zone.partition(":")[2] in names]


def _zoneless(region: str) -> tuple[str, ...]:
    """As it is, and without the letter of an availability zone: us-east-1a, us-central1-a."""
    return region, re.sub(r"(?<=\d)-?[a-z]$", "", region)


def _part(text: str) -> str:
    """A country is known, and not the part."""
    head, dash, part = (piece.strip() for piece in (canonical(text) if text.isascii() else text).partition("-"))
    country = alpha_3(head.upper()) if dash else None
    if country is None or country not in countries():
        return ""
    two, known = alpha_2(country), parts(alpha_2(country))
    by_name = [zone for zone, figure in known.items() if _plain(part) in (_plain(figure.place), _plain(figure.region))]
    by_name += [zone for zone in (f"{two}-{two}{part.upper()}",) if zone in known]  # SE-3
    if by_name:
        return _did_you_mean(by_name)
    if of_its_own := _territory(two, part.upper()):
        return _did_you_mean([of_its_own])
    if not known:
        return f"codecarbon's tables have no parts of {the(countries()[country])}: name '{country}', or {OWN_FIGURE}"
    codes = ", ".join(sorted(zone.partition("-")[2] for zone in known))
    return f"the parts of {the(countries()[country])} are {two}- with one of {codes}; or name '{country}', the whole"


def _territory(country: str, part: str) -> str:
    """A part that ISO 3166 lists as a country too, which has a figure: US-PR is PRI."""
    import pycountry

    listed = pycountry.subdivisions.get(code=f"{country}-{part}")
    own = pycountry.countries.get(alpha_2=part) if len(part) == 2 else None
    same = listed and own and _plain(own.name).split()[0] == _plain(listed.name).split()[0]
    return str(own.alpha_3) if same and own and find(own.alpha_3) else ""


def _without_figure(text: str) -> str:
    """A country by its code that the table has not, or has with 0."""
    import pycountry

    code = text.upper()
    country = alpha_3(code)
    if country is None or not text.isascii():
        return ""
    if country in countries():
        return f"codecarbon's table has 0 g/kWh for {the(countries()[country])}, which is no grid's mean: {OWN_FIGURE}"
    listed = pycountry.countries.get(alpha_3=country)
    return f"codecarbon's table has no figure for {listed.name if listed else country}: {OWN_FIGURE}"


@cache
def _names() -> dict[str, list[str]]:
    """Name in plain letters → every zone of that name."""
    import pycountry

    found: dict[str, list[str]] = {}
    for code, name in countries().items():
        iso = pycountry.countries.get(alpha_3=code)
        also = [getattr(iso, kind, "") for kind in ("name", "common_name", "official_name")] if iso else []
        for each in {_plain(each) for each in (name, *also) if each}:
            found.setdefault(each, []).append(code)
    for country in PARTED:
        for zone, figure in parts(country).items():
            found.setdefault(_plain(figure.place), []).append(zone)
    for name, code in ALSO.items():
        found[name] = [code]
    return {name: [zone for zone in zones if find(zone)] for name, zones in found.items()}


def _name(text: str) -> str:
    """A country's or a part's name; or that of a part without a figure, which lies in a country that has one."""
    names, plain = _names(), _plain(text)
    if plain in names:
        return _did_you_mean(names[plain])
    pieces = [_plain(piece) for piece in re.split(r"[-,/():]", text)]
    both = [zone for piece in pieces for zone in names.get(piece, ()) if "-" in zone]
    within = [zone for zone in both if any(zone[:2] in _twos(piece) for piece in pieces)]
    if within:
        return _did_you_mean(within)
    import pycountry

    owners = {
        alpha_3(part.country_code) or "" for part in pycountry.subdivisions if plain and _plain(part.name) == plain
    }
    return _did_you_mean(sorted(owner for owner in owners if owner and find(owner)))


def _twos(name: str) -> list[str]:
    """alpha-2 codes that a country's name or code stands for."""
    code = alpha_3(name.upper())
    return [alpha_2(zone) for zone in [*_names().get(name, ()), *([code] if code else [])]]


def _other_spelling(text: str) -> str:
    """US_CA, "US CA", US.CA, U.S., usca."""
    joined = re.sub(r"[\s_./,;:|]+", "-", text).strip("-")
    squeezed = re.sub(r"[^A-Za-z0-9]", "", text)
    candidates = [joined, squeezed, f"{squeezed[:2]}-{squeezed[2:]}" if len(squeezed) in (4, 5) else ""]
    found = [canonical(each) for each in candidates if each and each.isascii() and find(each)]
    return _did_you_mean(found[:1])


def _misspelt(text: str) -> str:
    import difflib

    plain = _plain(text)
    if len(plain) >= 5 and (close := difflib.get_close_matches(plain, _names(), n=1, cutoff=0.8)):
        return _did_you_mean(_names()[close[0]])
    letters = plain.upper()
    near = [c for c in countries() if sum(a != b for a, b in zip(c, letters, strict=False)) == 1 and find(c)]
    return _did_you_mean(near) if re.fullmatch(r"[A-Z]{3}", letters) else ""

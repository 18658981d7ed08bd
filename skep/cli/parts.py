"""The composite values of service flags (ports, mounts, references ..) as pieces of Docker's JSON. Pure.

Every function takes one flag value, returns one or more JSON objects, and raises ValueError with a right example.
"""

import re
from collections.abc import Callable
from typing import Any

from skep.cli import values

Json = dict[str, Any]

PORT_RANGE_MAX = 1024  # ports of one --publish; more is surely a mistake
PROTOCOLS = ("tcp", "udp", "sctp")
SHORT_PORT = re.compile(r"(?:(?P<published>\d+(?:-\d+)?):)?(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>\w+))?")


def fields(text: str, *, example: str) -> list[tuple[str, str | None]]:
    """`a=1,b,c=2` as pairs, quotes around a field respected as in CSV; a bare key has the value None."""
    import csv

    try:
        row = next(csv.reader([text], strict=True), [])
    except csv.Error as problem:
        raise ValueError(f"{text!r}: {problem}; write it as {example}") from None
    pairs: list[tuple[str, str | None]] = []
    for field in row:
        key, equals, value = field.partition("=")
        if not key.strip():
            raise ValueError(f"{text!r} has an empty field; write it as {example}")
        pairs.append((key.strip().lower(), value if equals else None))
    return pairs


def port_number(text: str | None, *, name: str) -> int:
    """A port from 1 to 65535."""
    if not text or not text.isdecimal() or not 1 <= int(text) <= 65535:  # noqa: PLR2004
        raise ValueError(f"{name} port {text!r} is not a number from 1 to 65535")
    return int(text)


def _span(text: str, *, name: str) -> range:
    first, _, last = text.partition("-")
    low, high = port_number(first, name=name), port_number(last or first, name=name)
    if high < low or high - low >= PORT_RANGE_MAX:
        raise ValueError(f"{name} ports {text!r}: the range must rise and hold at most {PORT_RANGE_MAX} ports")
    return range(low, high + 1)


def publish(text: str) -> list[Json]:
    """`8080:80/tcp`, `8000-8002:80-82`, `80`, or `mode=host,target=80,published=8080,protocol=tcp`."""
    if "=" in text:
        return [_publish_long(text)]
    match = SHORT_PORT.fullmatch(text)
    if match is None:
        if text.count(":") > 1:
            raise ValueError(
                f"{text!r}: an IP address cannot be given, a port is published on every node; write 8080:80"
            )
        raise ValueError(f"{text!r} is not a port; write 8080:80/tcp or mode=host,target=80,published=8080")
    protocol = (match["protocol"] or "tcp").lower()
    _one_of("protocol", protocol, PROTOCOLS)
    targets = _span(match["target"], name="target")
    published = _span(match["published"], name="published") if match["published"] else range(0)
    if published and len(published) != len(targets):
        raise ValueError(f"{text!r}: the two ranges differ in length; write 8000-8002:80-82")
    return [
        {"Protocol": protocol, "TargetPort": target, "PublishedPort": published[index] if published else 0,
         "PublishMode": "ingress"}
        for index, target in enumerate(targets)
    ]  # fmt: skip


def _publish_long(text: str) -> Json:
    example = "mode=host,target=80,published=8080,protocol=tcp"
    port: Json = {"Protocol": "tcp", "PublishMode": "ingress"}
    for key, value in fields(text, example=example):
        if key in ("target", "published"):
            port["TargetPort" if key == "target" else "PublishedPort"] = port_number(value, name=key)
        elif key == "protocol":
            port["Protocol"] = _one_of("protocol", (value or "").lower(), PROTOCOLS)
        elif key == "mode":
            port["PublishMode"] = _one_of("mode", (value or "").lower(), ("ingress", "host"))
        elif key == "name":
            port["Name"] = value or ""
        else:
            raise ValueError(f"{key!r} is not a field of a port; write it as {example}")
    if "TargetPort" not in port:
        raise ValueError(f"{text!r} lacks target; write it as {example}")
    return port


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(allowed)}")
    return value


def mount(text: str) -> Json:
    """`type=bind,source=/data,target=/var/data,readonly` and its relatives volume and tmpfs."""
    example = "type=bind,source=/data,target=/var/data,readonly"
    made: Json = {"Type": "volume"}
    for key, value in fields(text, example=example):
        if key not in MOUNT_FIELDS:
            raise ValueError(f"{key!r} is not a field of a mount; write it as {example}")
        path, parse = MOUNT_FIELDS[key]
        owner = made
        for step in path[:-1]:
            owner = owner.setdefault(step, {})
        parsed = parse(key, value)
        if isinstance(parsed, dict):
            owner.setdefault(path[-1], {}).update(parsed)
        else:
            owner[path[-1]] = parsed
    return _checked_mount(made, text=text, example=example)


def _checked_mount(made: Json, *, text: str, example: str) -> Json:
    if not made.get("Target"):
        raise ValueError(f"{text!r} lacks target; write it as {example}")
    if not str(made["Target"]).startswith("/"):
        raise ValueError(f"target {made['Target']!r} is not an absolute path; write it as {example}")
    if made["Type"] == "bind" and not made.get("Source"):
        raise ValueError(f"{text!r} lacks source, the path on the machine; write it as {example}")
    if made["Type"] == "tmpfs" and made.get("Source"):
        raise ValueError(f"{text!r}: a tmpfs has no source; write it as type=tmpfs,target=/tmp,tmpfs-size=64m")
    for kind in ("volume", "bind", "tmpfs"):
        if f"{kind.title()}Options" in made and kind != made["Type"]:
            raise ValueError(f"{text!r}: options of a {kind} mount do not fit type={made['Type']}")
    return made


def _switch(key: str, value: str | None) -> bool:
    word = "true" if value is None else value.lower()
    return _one_of(key, word, ("true", "false", "1", "0")) in ("true", "1")


def _octal(key: str, value: str | None) -> int:
    if value is None or not re.fullmatch(r"(0o)?[0-7]{1,5}", value):
        raise ValueError(f"{key} {value!r} is not an octal mode, such as 0444")
    return int(value.removeprefix("0o"), 8)


def file_reference(text: str) -> Json:
    """`NAME` or `source=NAME,target=FILE,uid=0,gid=0,mode=0444`, of a secret or a config."""
    example = "source=NAME,target=FILE,mode=0400"
    made: Json = {"UID": "0", "GID": "0", "Mode": 0o444}
    if "=" not in text and "," not in text:
        made |= {"source": text, "Name": text}
    else:
        for key, value in fields(text, example=example):
            if key in ("source", "src"):
                made["source"] = value or ""
            elif key == "target":
                made["Name"] = value or ""
            elif key in ("uid", "gid"):
                made[key.upper()] = value or ""
            elif key == "mode":
                made["Mode"] = _octal(key, value)
            else:
                raise ValueError(f"{key!r} is not a field of this; write it as {example}")
    if not made.get("source"):
        raise ValueError(f"{text!r} lacks source; write it as {example}")
    source = made.pop("source")
    made.setdefault("Name", source)
    return {"source": source, "File": made}


def network(text: str) -> Json:
    """`NAME` or `name=NAME,alias=db,driver-opt=key=value`."""
    example = "name=NAME,alias=db"
    if "=" not in text:
        if not text.strip():
            raise ValueError("an empty name of a network")
        return {"Target": text}
    made: Json = {}
    for key, value in fields(text, example=example):
        if key == "name":
            made["Target"] = value or ""
        elif key == "alias":
            made.setdefault("Aliases", []).append((value or "").lower())
        elif key == "driver-opt":
            name, content = values.pair(value or "")
            made.setdefault("DriverOpts", {})[name] = content
        else:
            raise ValueError(f"{key!r} is not a field of a network; write it as {example}")
    if not made.get("Target"):
        raise ValueError(f"{text!r} lacks name; write it as {example}")
    return made


def constraint(text: str) -> str:
    """`KEY==VALUE` or `KEY!=VALUE`; which keys there are is the server's business."""
    for operator in ("==", "!="):
        key, found, wanted = text.partition(operator)
        if found and key.strip() and wanted.strip():
            return text
    raise ValueError(f"{text!r} is not a constraint; write KEY==VALUE or KEY!=VALUE, such as node.labels.disk==ssd")


def preference(text: str) -> Json:
    """`spread=node.labels.zone`."""
    key, _, descriptor = text.partition("=")
    if key.strip().lower() != "spread" or not descriptor.strip():
        raise ValueError(f"{text!r} is not a placement preference; write it as spread=node.labels.zone")
    return {"Spread": {"SpreadDescriptor": descriptor.strip()}}


def ulimit(text: str) -> Json:
    """`nofile=1024:2048` (soft:hard) or `nofile=1024`."""
    match = re.fullmatch(r"(\w+)=(-1|\d+)(?::(-1|\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a limit; write it as nofile=1024:2048")
    soft, hard = int(match[2]), int(match[3] or match[2])
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError(f"{text!r}: the soft limit is above the hard one; write it as nofile=1024:2048")
    return {"Name": match[1], "Soft": soft, "Hard": hard}


def generic(text: str) -> list[Json]:
    """`gpu=2`, `apple=3,pear=4`; a countable resource of the operator's own."""
    made: list[Json] = []
    for part in text.split(","):
        kind, _, amount = part.partition("=")
        if not kind.strip() or not amount.isdecimal():
            raise ValueError(f"{part!r} is not a generic resource; write it as gpu=2")
        made.append({"DiscreteResourceSpec": {"Kind": kind.strip(), "Value": int(amount)}})
    return made


def host(text: str) -> str:
    """`name:ip` as the line of a hosts file, `ip name`."""
    name, colon, address = text.partition(":")
    if not colon or not name or not address:
        raise ValueError(f"{text!r} is not a host entry; write it as db:10.0.0.7")
    return f"{address} {name}"


def words(text: str) -> list[str]:
    """A command line split as a shell does."""
    import shlex

    try:
        return shlex.split(text)
    except ValueError as problem:
        raise ValueError(f"{text!r} cannot be split into words: {problem}") from None


def _word(_key: str, value: str | None) -> str:
    return value or ""


def _kind_of_mount(key: str, value: str | None) -> str:
    return _one_of(key, (value or "").lower(), ("bind", "volume", "tmpfs"))


def _propagation(key: str, value: str | None) -> str:
    return _one_of(key, value or "", ("private", "rprivate", "shared", "rshared", "slave", "rslave"))


def _entry(_key: str, value: str | None) -> dict[str, str]:
    name, content = values.pair(value or "")
    return {name: content}


def _bytes(_key: str, value: str | None) -> int:
    return values.size_bytes(value or "")


# Field of --mount, where its value goes, how it is read. A mapping is merged with what is there.
MOUNT_FIELDS: dict[str, tuple[tuple[str, ...], Callable[[str, str | None], Any]]] = {
    "type": (("Type",), _kind_of_mount),
    "source": (("Source",), _word),
    "src": (("Source",), _word),
    "target": (("Target",), _word),
    "dst": (("Target",), _word),
    "destination": (("Target",), _word),
    "readonly": (("ReadOnly",), _switch),
    "ro": (("ReadOnly",), _switch),
    "bind-propagation": (("BindOptions", "Propagation"), _propagation),
    "bind-nonrecursive": (("BindOptions", "NonRecursive"), _switch),
    "volume-nocopy": (("VolumeOptions", "NoCopy"), _switch),
    "volume-subpath": (("VolumeOptions", "Subpath"), _word),
    "volume-label": (("VolumeOptions", "Labels"), _entry),
    "volume-driver": (("VolumeOptions", "DriverConfig", "Name"), _word),
    "volume-opt": (("VolumeOptions", "DriverConfig", "Options"), _entry),
    "tmpfs-size": (("TmpfsOptions", "SizeBytes"), _bytes),
    "tmpfs-mode": (("TmpfsOptions", "Mode"), _octal),
}

PUBLISH = values.Kind("port", publish)
MOUNT = values.Kind("mount", mount)
FILE_REFERENCE = values.Kind("reference", file_reference)
NETWORK = values.Kind("network", network)
CONSTRAINT = values.Kind("constraint", constraint)
PREFERENCE = values.Kind("pref", preference)
ULIMIT = values.Kind("ulimit", ulimit)
GENERIC = values.Kind("resource", generic)
HOST = values.Kind("host:ip", host)
WORDS = values.Kind("command", words)

"""The wire of `protos/released.json` stays: each kind of change that breaks it is refused, and additions are not."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
RELEASED = ROOT / "protos" / "released.json"
BUF = Path(sys.executable).with_name("buf")
# buf's word for what it was asked to find.
FOUND = 100

Wire = dict[str, Any]
Change = Callable[[Wire, st.DataObject], None]


def wire() -> Wire:
    """Return the released descriptors."""
    released: Wire = json.loads(RELEASED.read_text())
    return released


def breaks(changed: Wire, folder: Path) -> str:
    """Return what is said of a changed wire, empty if nothing."""
    image = folder / "image.json"
    image.write_text(json.dumps(changed))
    done = subprocess.run(
        [BUF, "breaking", image, "--against", RELEASED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, FOUND), done.stderr
    assert bool(done.stdout) == (done.returncode == FOUND)
    return done.stdout


def all_of(changed: Wire, kind: str) -> Iterator[tuple[list[Any], Any]]:
    """Yield each message, field, enum, value, service or method, with the list that it is in."""
    parents = {"field": "messageType", "value": "enumType", "method": "service"}
    for file in changed["file"]:
        holders = file[parents[kind]] if kind in parents else [file]
        for holder in holders:
            for item in holder.get(kind, []):
                yield holder[kind], item


def drawn(changed: Wire, data: st.DataObject, kind: str) -> tuple[list[Any], Any]:
    """Return one of a kind."""
    # The first value of an enum is 0, or it is none.
    some = [(among, item) for among, item in all_of(changed, kind) if kind != "value" or item.get("number")]
    found: tuple[list[Any], Any] = data.draw(st.sampled_from(some))
    return found


def removed(kind: str) -> Change:
    """Return the change that takes one away."""

    def change(changed: Wire, data: st.DataObject) -> None:
        among, item = drawn(changed, data, kind)
        among.remove(item)

    return change


def renamed(kind: str) -> Change:
    """Return the change that gives one another name."""

    def change(changed: Wire, data: st.DataObject) -> None:
        drawn(changed, data, kind)[1]["name"] += "_other"

    return change


def renumbered(changed: Wire, data: st.DataObject) -> None:
    """Give a field another number."""
    drawn(changed, data, "field")[1]["number"] += 100


def value_renumbered(changed: Wire, data: st.DataObject) -> None:
    """Give an enum's value another number."""
    drawn(changed, data, "value")[1]["number"] += 100


def retyped(changed: Wire, data: st.DataObject) -> None:
    """Give a field another type."""
    field = drawn(changed, data, "field")[1]
    field["type"] = "TYPE_BOOL" if field["type"] == "TYPE_FIXED64" else "TYPE_FIXED64"
    field.pop("typeName", None)


def relabelled(changed: Wire, data: st.DataObject) -> None:
    """Make one of many, or many of one."""
    field = drawn(changed, data, "field")[1]
    if field.get("proto3Optional"):
        field["proto3Optional"] = False
        field.pop("oneofIndex")
        return
    field["label"] = "LABEL_OPTIONAL" if field["label"] == "LABEL_REPEATED" else "LABEL_REPEATED"


def restreamed(changed: Wire, data: st.DataObject) -> None:
    """Stream what was one message, or not what was."""
    method = drawn(changed, data, "method")[1]
    end = data.draw(st.sampled_from(["clientStreaming", "serverStreaming"]))
    method[end] = not method.get(end, False)


def resigned(changed: Wire, data: st.DataObject) -> None:
    """Have a method take or give another message."""
    method = drawn(changed, data, "method")[1]
    end = data.draw(st.sampled_from(["inputType", "outputType"]))
    method[end] = ".vaeserve.v1.TensorSpec"


def message_renamed(changed: Wire, data: st.DataObject) -> None:
    """Give a message another name, wherever it is used."""
    name = drawn(changed, data, "messageType")[1]["name"]
    text = json.dumps(changed).replace(f'"name": "{name}"', f'"name": "{name}Other"')
    changed.clear()
    changed.update(json.loads(text.replace(f'".vaeserve.v1.{name}"', f'".vaeserve.v1.{name}Other"')))


def repackaged(changed: Wire, data: st.DataObject) -> None:
    """Give the package another name."""
    del data
    text = json.dumps(changed).replace("vaeserve.v1", "vaeserve.v2")
    changed.clear()
    changed.update(json.loads(text))


BREAKS: dict[str, Change] = {
    "a message has another name": message_renamed,
    "a field is gone": removed("field"),
    "an enum's value is gone": removed("value"),
    "a method is gone": removed("method"),
    "a service is gone": removed("service"),
    "a field has another name": renamed("field"),
    "a value has another name": renamed("value"),
    "a method has another name": renamed("method"),
    "a field has another number": renumbered,
    "a value has another number": value_renumbered,
    "a field has another type": retyped,
    "a field is many": relabelled,
    "a method streams": restreamed,
    "a method has other messages": resigned,
    "the package has another name": repackaged,
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_change_that_breaks_the_wire_is_refused(kind: str, tmp_path: Path) -> None:
    """Whatever it is done to."""

    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.data())
    def refused(data: st.DataObject) -> None:
        changed = wire()
        BREAKS[kind](changed, data)
        assert breaks(changed, tmp_path)

    refused()


def test_what_is_added_breaks_nothing(tmp_path: Path) -> None:
    """A field, a value, a method, a message and a service more; nor does what is as it was."""
    assert breaks(wire(), tmp_path) == ""
    changed = wire()
    (file,) = changed["file"]
    message = deepcopy(next(item for item in file["messageType"] if item["name"] == "ModelSpec")) | {"name": "Added"}
    file["messageType"].append(message)
    for message in file["messageType"]:
        more = {"name": "added", "number": 500, "label": "LABEL_OPTIONAL", "type": "TYPE_STRING", "jsonName": "added"}
        message.setdefault("field", []).append(more)
    for number, enum in enumerate(file["enumType"]):
        enum["value"].append({"name": f"ADDED_{number}", "number": 500})
    method = {"name": "Added", "inputType": ".vaeserve.v1.Added", "outputType": ".vaeserve.v1.Added"}
    for service in file["service"]:
        service["method"].append(method)
    file["service"].append({"name": "AddedService", "method": [method]})
    assert breaks(changed, tmp_path) == ""


def test_the_protos_are_linted_and_compatible() -> None:
    """`make check` runs both of these."""
    for command in (["lint"], ["breaking", "--against", "protos/released.json"]):
        done = subprocess.run([BUF, *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert f"buf {' '.join(command)}" in (ROOT / "Makefile").read_text()

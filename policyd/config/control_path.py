"""Finds the control socket that a settings file names, without checking the settings.

`policyd status` must be quick, and must work while the settings file is being edited.
"""

from __future__ import annotations

from pathlib import Path

from policyd.config.files import MAX_SETTINGS_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.problems import Report
from policyd.config.yaml_tree import Mapping, Scalar, parse_yaml

# The path in the shipped settings and units.
DEFAULT_CONTROL = "/run/policyd/control.sock"


def control_path(settings_path: str | None) -> str | None:
    """Returns the path of the control socket; None if the settings do not name a path.

    Returns DEFAULT_CONTROL without a settings file, and if the file cannot be read or is not a mapping in YAML.
    """
    if settings_path is None:
        return DEFAULT_CONTROL
    try:
        content = read_file(settings_path, MAX_SETTINGS_BYTES)
    except (UnreadableError, OversizedError):
        return DEFAULT_CONTROL
    root = parse_yaml(content, settings_path, Report())
    if not isinstance(root, Mapping):
        return DEFAULT_CONTROL
    control = root.get("control")
    if not isinstance(control, Scalar) or control.missing or (control.plain and control.text in {"null", "~"}):
        return None
    return str(Path(settings_path).parent / control.text)

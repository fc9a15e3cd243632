"""What is likely not meant, in a ruleset that is right."""

from __future__ import annotations

import datetime

from policyd.config.problems import Report
from policyd.config.ruleset import RulesFile


def lint(rules_file: RulesFile, today: datetime.date) -> Report:
    return Report()

"""How hypothesis runs here: never by the clock, and in CI the same examples each time.

What is generated anew on a developer's machine finds what nobody has thought of; what CI says must depend on the
commit alone.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("policyd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("policyd"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "policyd")

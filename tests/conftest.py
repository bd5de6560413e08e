"""Settings that every test shares: how hard Hypothesis looks.

`HYPOTHESIS_PROFILE` chooses a profile by name; without it, a run with `CI=true` takes `ci` and any other `default`.
"""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, Phase, settings

# No deadlines: on a loaded machine they measure the machine. For the same reason a slow generator is no finding.
_QUIET = [HealthCheck.too_slow]

settings.register_profile("default", max_examples=50, deadline=None, print_blob=True, suppress_health_check=_QUIET)
# The same examples in every run, so that a change is judged by itself and not by luck; chance is for `nightly`.
settings.register_profile("ci", settings.get_profile("default"), max_examples=200, derandomize=True)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=5000)
# For `make mutants`: a test only has to notice, in a process that is gone afterwards.
settings.register_profile(
    "mutants",
    settings.get_profile("ci"),
    max_examples=25,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)


# A suite that a script started in the background begins with SIGINT ignored, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _profile() -> str:
    """Return the name of the profile that the environment asks for."""
    in_ci = os.environ.get("CI", "").strip().lower() in {"1", "true", "yes"}
    return os.environ.get("HYPOTHESIS_PROFILE", "").strip() or ("ci" if in_ci else "default")


settings.load_profile(_profile())

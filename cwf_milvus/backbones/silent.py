"""OpenVINO imported without the reports on its use that it sends to its makers."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

_TELEMETRY = "openvino_telemetry"
_lock = threading.Lock()


def import_openvino() -> ModuleType:
    """Return the module `openvino`, which asks no other host for anything.

    Imported plainly, it forks a process that tells its makers of the import, and keeps a client's
    number in `~/intel`. Without its telemetry package, which is kept from it for the moment of
    the import, it does neither. Where the host program imported OpenVINO first, nothing is changed.

    Raises:
        ImportError: it is not installed.
    """
    with _lock:
        if "openvino" in sys.modules or _TELEMETRY in sys.modules:
            import openvino
        else:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as if not installed
            try:
                import openvino
            finally:
                del sys.modules[_TELEMETRY]
    return openvino

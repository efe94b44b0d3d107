"""Imports flux0 and sends a message. Needs a free-threaded Python.

If an extension module needed the GIL, Python would enable the GIL, with a warning.
"""

import sysconfig

from flux0 import Flux0, HttpxTransport
from flux0.testing import FakeTransport

assert sysconfig.get_config_var("Py_GIL_DISABLED")
with Flux0(transport=FakeTransport("Hi")) as client:
    assert client.conversation(agent=client.agents.first()).ask("Hello").text == "Hi"
HttpxTransport().close()

"""The names of `flux0.models`, under the old import name.

The generated client had one submodule for each model. All these submodules are aliases of this
module.
"""

from __future__ import annotations

import sys

from flux0.models import *  # noqa: F403 - every model is re-exported
from flux0.models import ChunkEvent, StatusEvent

ChunkEventStream = ChunkEvent
EmittedEventStream = StatusEvent

_SUBMODULES = (
    "agentcreationparamsdto agentdto agentsdto apierror chunkeventdto chunkeventstream"
    " consumptionoffsetsdto contentpartdto controloptions create_session_eventop create_sessionop"
    " emittedeventdto emittedeventstream eventcreationparamsdto eventdto eventsdto eventsourcedto"
    " eventtypedto httpvalidationerror jsonpatchoperationdto list_session_eventsop list_sessionsop"
    " messageeventdatadto reasoningpartdto retrieve_agentop retrieve_sessionop"
    " sessioncreationparamsdto sessiondto sessionsdto sessionstream statuseventdatadto"
    " statuseventdatastatusfield toolcalldto tooleventdatadto toolpartdto toolresultdto"
    " validationerror"
)
for _name in _SUBMODULES.split():
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = sys.modules[__name__]

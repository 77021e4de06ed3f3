"""Which inputs fall under an edit. One scope per file; the list of scopes is this folder.

Any scope goes with any editor that routes: `GRACE(scope=SentenceScope())`. What a scope is: `editable.routing.Scope`.
"""

from editable.scopes.ball import BallScope
from editable.scopes.nearest import NearestScope
from editable.scopes.sentence import SentenceScope

__all__ = ["BallScope", "NearestScope", "SentenceScope"]

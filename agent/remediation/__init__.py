"""The act flow: gate -> fresh probe -> evidence -> act -> verify. Every write to the host lives here.

No detector may come in here, and nothing in the sense flow calls this room: an act is asked for by a caller of the
API, never by a finding. `gate` decides and is pure, `ledger` remembers, `evidence` keeps, `engine` leads through the
steps, `actions/` has one file per action.
"""

#!/bin/sh
# nodediag, from the checkout that the tests run from. -P: nothing of the folder it is started in is imported.
export PYTHONPATH=/opt/nodediag:/opt/site-packages
exec python3 -P -m agent "$@"

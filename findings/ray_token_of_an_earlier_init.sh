#!/usr/bin/env bash
# ray 2.60.0: a script's ray.init() leaves a token behind, and then `ray start --head` is joined by nobody who names it.
#
# Guess before the first run (a benchmark that worked on the day before had stopped with InvalidAuthToken; Ray's set-up of
# tokens was read): ray.init(address="HOST:PORT") of the same user on the same machine fails within seconds with
# ray.exceptions.AuthenticationError.
# Seen: it tries for ten to twenty seconds and raises the builtin ConnectionError "Failed to connect to Ray cluster at ...",
# which does not speak of tokens; ray.exceptions.AuthenticationError is nowhere in its chain of causes, it is text in the
# message of one. The command that `ray start --head` itself prints for further nodes fails likewise, with a traceback.
# ray.init(address="auto") works, and so does RAY_AUTH_MODE=token with the address.
# Why it matters: any ray.init() that starts a cluster of its own, e.g. in a test, writes ~/.ray/auth_token for good. From
# then on `ray start --head` asks for it, while clients and nodes that name an address do not send it unless
# RAY_AUTH_MODE=token is set: scripts that worked for months say that no cluster is there, and handlers of
# AuthenticationError do not see it.
set -euo pipefail
work=$(mktemp -d)
head=
trap 'test -z "$head" || { kill "$head"; wait "$head" || true; }; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
PATH=$work/venv/bin:$PATH
export HOME=$work RAY_TMPDIR=$work/ray RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
cd "$work"

python -c 'import ray; ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)' 2> /dev/null
test -s "$work/.ray/auth_token" && echo "after ray.init() in a script: $(ls .ray)"

port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
ray start --head --port "$port" --num-cpus 1 --include-dashboard false --block > head.log 2>&1 &
head=$!

cat > "$work/check.py" <<'PYTHON'
import sys
import time

import ray

start = time.monotonic()
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    print("joined")
except Exception as error:
    chain, cause = [], error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    names = " <- ".join(type(one).__name__ for one in chain)
    assert not any(isinstance(one, ray.exceptions.AuthenticationError) for one in chain), "the behaviour has changed"
    assert any("InvalidAuthToken" in str(one) for one in chain), names
    print(f"{names} after {time.monotonic() - start:.0f} s: {str(error).splitlines()[0]}")
    sys.exit(3)
PYTHON
until RAY_AUTH_MODE=token python check.py "127.0.0.1:$port" > token.log 2> /dev/null; do
    kill -0 "$head" || { cat head.log; exit 1; }
    sleep 1
done
echo "ray.init(HOST:PORT), RAY_AUTH_MODE=token: $(cat token.log)"
code=0
told=$(python check.py "127.0.0.1:$port" 2> /dev/null) || code=$?
echo "ray.init(HOST:PORT): $told"
test "$code" = 3 || { echo "the behaviour has changed: an address is joined without RAY_AUTH_MODE"; exit 1; }
code=0
ray start --address "127.0.0.1:$port" > node.log 2>&1 || code=$?
echo "ray start --address, as the head says: exit code $code, $(grep -c Traceback node.log) tracebacks"
test "$code" != 0 || { echo "the behaviour has changed: a node joins"; exit 1; }

#!/usr/bin/env bash
# huggingface_hub 2.4.0 (without hf_xet): a killed hf_hub_download starts the file anew and leaves the partial one behind.
#
# Guess before the first run: the second call finds the ".incomplete" file of the first and asks for the rest by Range,
# as the client did for years and as resuming is described.
# Seen: the partial file has a name of its own for each process since locks were not trusted any more; the next process
# asks for all bytes, and each kill leaves another partial file in .cache/huggingface/download, which nothing removes.
# Within a process a broken connection is still continued by Range.
# Why it matters: weights of one file (29 GB of BAGEL) on a preemptible machine never arrive, and fill the disk instead.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
"$work/venv/bin/pip" uninstall --quiet --yes hf_xet 2> /dev/null || true

cat > "$work/server.py" <<'PYTHON'
"""One file of a hub on loopback; the first answer stops half way and stays open."""
import hashlib
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = b"0123456789abcdef" * 2_500_000  # 40 MB: the client writes 10 MB at a time
asked = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(200, DATA, head=True)

    def do_GET(self):
        if not self.path.endswith("/w.bin"):  # what the client asks besides
            self.answer(404, b"", head=False)
            return
        span = self.headers.get("Range")
        asked.append(span or "all bytes")
        print(asked[-1], file=sys.stderr, flush=True)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.answer(206 if span else 200, DATA[start:], head=False, stop=len(asked) == 1)

    def answer(self, status, body, *, head, stop=False):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(DATA).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if head:
            return
        self.wfile.write(body[: len(body) // 2] if stop else body)
        if stop:
            time.sleep(600)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
server.handle_error = lambda *_: None  # the killed client hangs up
print(server.server_port, flush=True)
server.serve_forever()
PYTHON
"$work/venv/bin/python" "$work/server.py" > "$work/port" 2> "$work/asked" &
server=$!
trap 'kill "$server" 2> /dev/null; rm -rf "$work"' EXIT
until [ -s "$work/port" ]; do sleep 0.1; done

export HF_ENDPOINT="http://127.0.0.1:$(cat "$work/port")" HF_HUB_DISABLE_PROGRESS_BARS=1
get=("$work/venv/bin/python" -c "from huggingface_hub import hf_hub_download as get; get('a/b', 'w.bin', local_dir='$work/to')")
partial() { find "$work/to" -name '*.incomplete' -size +9M 2> /dev/null | wc -l; }

"${get[@]}" 2> /dev/null &
first=$!
for _ in $(seq 300); do
    [ "$(partial)" = 1 ] && break
    sleep 0.1
done
kill -9 "$first"
wait "$first" 2> /dev/null || true
"${get[@]}"
echo "requests: $(paste -sd ',' "$work/asked"); partial files left: $(partial)"
[ "$(paste -sd ',' "$work/asked")" = "all bytes,all bytes" ] || { echo "the behaviour has changed: the rest is asked for"; exit 1; }
[ "$(partial)" = 1 ] || { echo "the behaviour has changed: the partial file is removed"; exit 1; }

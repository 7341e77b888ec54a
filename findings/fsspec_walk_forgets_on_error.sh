#!/usr/bin/env bash
# fsspec 2026.9.0: `walk(on_error="raise")` raises for the top folder only; a subfolder that fails to list is left out.
#
# Guess before the first run: on_error holds for the whole walk, so `find(root, on_error="raise")` over HTTP ends with an
# error where one of the folders below takes longer than the client's timeout; "omit", the default, leaves it out.
# Seen: both give the files of the other folder and no error. The recursion does not hand on_error down, in the plain and
# the asynchronous class alike, so a callable is not called either; for the top folder it does raise. (An HTTP status
# such as 503 ends the walk whatever on_error says, for aiohttp's exception is no OSError; a timeout is one since 3.11.)
# Why it matters: a listing of a data set behind HTTP (or FTP, SFTP, WebDAV: whatever has no listing of its own) loses a
# folder to one slow moment, and there is no argument by which to notice. List folder by folder with `ls` instead.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0 aiohttp==3.14.5 requests

cat > "$work/check.py" <<'PYTHON'
import http.server
import threading
import time

import aiohttp
import fsspec


class Listing(http.server.BaseHTTPRequestHandler):
    """A page of links each: two folders, a file in either; the second is slow."""

    pages = {"": '<a href="/a/">a</a><a href="/b/">b</a>', "/a": '<a href="/a/one">one</a>', "/b": '<a href="/b/two">two</a>'}

    def do_GET(self):
        path = self.path.rstrip("/")
        if path == "/b":
            time.sleep(3)
        try:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.pages[path].encode())
        except OSError:
            pass  # the client has left

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listing)
threading.Thread(target=server.serve_forever, daemon=True).start()
root = f"http://127.0.0.1:{server.server_port}/"
patience = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=1)}, "skip_instance_cache": True}
told = []
for on_error in ("omit", "raise", told.append):
    files = fsspec.filesystem("http", **patience).find(root, on_error=on_error)
    name = on_error if isinstance(on_error, str) else "a callable"
    print(f"on_error={name}: {[file.removeprefix(root) for file in files]}")
    assert files == [root + "a/one"], "the behaviour has changed"
assert told == [], "the behaviour has changed: errors of subfolders are told"
try:
    list(fsspec.filesystem("http", **patience).walk(root + "b/", on_error="raise"))
except TimeoutError as error:
    print(f"the folder itself, on_error=raise: {type(error).__name__}")
else:
    raise AssertionError("the top folder is left out, too")
PYTHON
"$work/venv/bin/python" "$work/check.py"

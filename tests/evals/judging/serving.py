"""A judge behind a real HTTP server on the loopback, with the OpenAI schema and all faults of the trade.

with Served(answer) as server:
  server.url, server.asked, server.keys
"""

import contextlib
import http.server
import json
import threading
import time

USAGE = {"prompt_tokens": 100, "completion_tokens": 7}


class Served:
  """answer(messages) -> text. fault(n) names what request n (from 1) meets instead of an answer.

  Faults: 500, 429 (Retry-After: 0), 400, 401, 301 (to itself), stall, drip, text, empty, closed.
  """

  def __init__(self, answer, fault=lambda n: None, *, stall_seconds=5.0, key=None, delay=0.0):
    self.answer, self.fault, self.key, self.delay = answer, fault, key, delay
    self.stall_seconds = stall_seconds
    self.asked, self.answered, self.keys, self.times = [], [], [], []
    self.at_once = self.most_at_once = 0
    self.lock = threading.Lock()
    self.stop = threading.Event()

  def __enter__(self):
    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
    self.server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
    self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
    self.thread.start()
    return self

  def __exit__(self, *_):
    self.stop.set()
    self.server.shutdown()
    self.server.server_close()

  def _handler(self):
    served = self  # within the handler `self` is another

    class Handler(http.server.BaseHTTPRequestHandler):
      def log_message(self, *args):
        pass

      def do_POST(self):
        with served.lock:
          served.at_once += 1
          served.most_at_once = max(served.most_at_once, served.at_once)
          self.inside = True
        try:
          with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._serve()
        finally:
          self._leave()

      def _leave(self):
        """Once: before the answer goes out, since whoever has it may be back before this thread goes on."""
        with served.lock:
          served.at_once -= self.inside
          self.inside = False

      def _serve(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with served.lock:
          served.asked.append(body)
          served.keys.append(self.headers.get("Authorization"))
          served.times.append(time.monotonic())
          number = len(served.asked)
        if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
          sent = self.headers.get("Authorization")
          self._send(401, json.dumps({"error": f"Incorrect API key provided: {sent}"}))
          return
        assert self.path == "/v1/chat/completions", self.path
        fault = served.fault(number)
        if fault is None:
          served.stop.wait(served.delay)
          text = served.answer(body["messages"])
          message = {"role": "assistant", "content": text}
          reply = {"object": "chat.completion", "model": body["model"], "usage": USAGE}
          reply["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
          self._send(200, json.dumps(reply))
          served.answered.append(body["messages"][-1]["content"])
        else:
          self._fail(fault)

      def _fail(self, fault):
        if fault == "stall":
          served.stop.wait(served.stall_seconds)
        elif fault == "drip":
          self.send_response(200)
          self.end_headers()
          while not served.stop.wait(0.1):
            self.wfile.write(b" ")
        elif fault == "text":
          self._send(200, "<html>Bad gateway</html>")
        elif fault == "empty":
          self._send(200, json.dumps({"choices": []}))
        elif fault == "closed":
          self.close_connection = True
        elif fault == 301:
          self._send(301, "", {"Location": f"http://localhost:{served.server.server_port}/v1"})
        elif fault == 429:
          self._send(429, "slow down", {"Retry-After": "0"})
        elif isinstance(fault, tuple):  # (status, headers)
          self._send(fault[0], "later", fault[1])
        else:
          self._send(fault, json.dumps({"error": {"message": f"status {fault}"}}))

      def _send(self, status, text, headers=()):
        data = text.encode()
        self._leave()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in dict(headers).items():
          self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    return Handler


def flaky(n):
  """Of ten requests, five meet something else than an answer."""
  return {0: 500, 2: 429, 5: "text", 7: "empty", 8: "closed"}.get(n % 10)

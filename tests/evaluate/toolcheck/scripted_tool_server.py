"""An OpenAI-compatible server that calls tools as expected, or with the faults it is told to have."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moe4.evaluate.built_in import HARD_CASES

MODEL = "scripted"


def hard_cases() -> list[dict[str, Any]]:
    return [json.loads(line) for line in HARD_CASES.read_text(encoding="utf-8").splitlines()]


def right_answer(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls of a perfect model, ids counting on; some call of the first tool where any will do."""
    expected = case["expected"]
    calls = [] if expected.get("truncated") else expected.get("calls")
    if calls is None:
        calls = [{"name": case["tools"][0]["function"]["name"], "arguments": fill(case)}] * expected["called"]
    first = sum(len(message.get("tool_calls") or []) for message in case["messages"])
    return [
        {
            "id": f"functions.{call['name']}:{first + place}",
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": json.dumps(call["arguments"], ensure_ascii=False),
            },
        }
        for place, call in enumerate(calls)
    ]


def cut_call(arguments: str) -> dict[str, Any]:
    """A call of a server that has only its beginning."""
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": "functions.get_weather:0", "type": "function", "function": function}


def fill(case: dict[str, Any]) -> dict[str, Any]:
    """Arguments that fit the first tool's schema."""
    schema = case["tools"][0]["function"]["parameters"]
    values = {"string": "2027-05-06", "boolean": True, "integer": 3, "number": 2.5}
    return {
        name: schema["properties"][name].get("enum", [values.get(str(schema["properties"][name]["type"]))])[0]
        for name in schema["required"]
    }


class ToolServer:
    """The server's faults, and what it has been asked."""

    def __init__(self) -> None:
        self.fault = ""
        self.asked: list[dict[str, Any]] = []
        self.attempts: Counter[str] = Counter()
        self.answers = {json.dumps(case["messages"]): right_answer(case) for case in hard_cases()}
        self.cut = {
            json.dumps(case["messages"]) for case in hard_cases() if case["expected"].get("truncated")
        }
        self.url = ""

    def reply_to(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return a status and the completion, or an error."""
        key = json.dumps(body["messages"])
        self.attempts[key] += 1
        if self.fault == "busy twice" and self.attempts[key] <= 2:
            return 503, {"error": {"message": "busy"}}
        if self.fault == "always busy":
            return 503, {"error": {"message": "busy"}}
        if self.fault == "refuses nested" and "Ada Byron" in key:
            return 400, {"error": {"message": "this schema is too deep"}}
        calls = json.loads(json.dumps(self.answers[key]))
        content = "" if calls else "Hello."
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        finish = "tool_calls" if calls else "length" if key in self.cut else "stop"
        if key in self.cut:
            content = ""
            tokens = body.get("max_tokens", 5)
            usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
            if self.fault == "cut calls are calls":
                calls, finish = [cut_call("{}")], "tool_calls"
            elif self.fault == "cut calls have arguments":
                calls = [cut_call('{"city": "Ro')]
            elif self.fault == "cut calls could run":
                calls = [cut_call("{}")]
        for call in calls:
            function = call["function"]
            if self.fault == "broken json":
                function["arguments"] = function["arguments"][:-1]
            elif self.fault == "other types":
                function["arguments"] = json.dumps({"city": 7, "amount": "much"})
            elif self.fault == "own ids":
                call["id"] = f"call_{self.attempts[key]}"
            elif self.fault == "nothing for empty" and body["stream"] and function["arguments"] == "{}":
                function["arguments"] = ""
            elif self.fault == "ids from zero":
                call["id"] = f"functions.{function['name']}:0"
        if self.fault == "never calls":
            calls, content, finish = [], "Never.", "length" if key in self.cut else "stop"
        elif self.fault == "leaks" and not calls:
            content = "Hello.<|im_end|>"
        elif self.fault == "says stop":
            finish = "stop"
        elif self.fault == "streams otherwise" and body["stream"] and not calls:
            content = "Good day."
        elif self.fault == "no usage when streaming" and body["stream"]:
            usage = {}
        elif self.fault == "usage is text":
            usage = "plenty"
        elif self.fault == "finish is a number" and not calls:
            finish = 7  # type: ignore[assignment]
        elif self.fault == "half a character" and not calls:
            content = "\ud83d"
        message = {"role": "assistant", "content": content or None, "tool_calls": calls or None}
        return 200, {
            "id": "c",
            "object": "chat.completion",
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": usage or None,
        }


@contextmanager
def running() -> Iterator[ToolServer]:
    """Run the server on a free port."""
    state = ToolServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            status, answer = state.reply_to(body)
            if status != 200 or not body["stream"]:
                self.send(status, answer)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event in events(answer):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def send(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield state
        http.shutdown()
        thread.join()


def events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Cut an answer into a stream's pieces, arguments a few characters at a time."""
    message, finish = answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]
    for piece in (message["content"] or "").split(" "):
        yield choice({"content": piece})
    for index, call in enumerate(message["tool_calls"] or []):
        head = {"index": index, "id": call["id"], "type": "function"}
        yield choice({"tool_calls": [{**head, "function": {"name": call["function"]["name"]}}]})
        text = call["function"]["arguments"]
        for start in range(0, len(text), 5):
            part = {"index": index, "function": {"arguments": text[start : start + 5]}}
            yield choice({"tool_calls": [part]})
    yield choice({}, finish)
    if answer["usage"]:
        yield {"choices": [], "usage": answer["usage"]}


def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def write_requests(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
    return path

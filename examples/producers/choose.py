"""A person chooses the better of two answers on a small page: `python choose.py [GATEWAY] [PORT]`."""

import html
import random
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import httpx
import openai

QUESTIONS = ("Explain rain to a child.", "Name a good name for a cat.", "Why is the sky dark at night?")
PAGE = '<!doctype html><meta charset="utf-8"><title>Choose</title><h1>{}</h1><form method="post">{}</form>'
ANSWER = '<input type="hidden" name="shown" value="{0}"><p><button name="better" value="{0}">{1}</button></p>'


class Page(BaseHTTPRequestHandler):
    """Each answer comes from a session of its own: the one that is pressed earns 1, the other 0."""

    gateway: httpx.Client

    def do_GET(self) -> None:
        if self.path != "/":
            self.send_error(404)
            return
        question = random.choice(QUESTIONS)
        asked = {"own_prompt": True, "num_sessions": 2}
        started = self.gateway.post("/rl/start_session", json=asked).raise_for_status().json()
        answers = ""
        for session in started["sessions"]:
            client = openai.OpenAI(base_url=session["base_url"], api_key="any")
            messages = [{"role": "user", "content": question}]
            answer = client.chat.completions.create(model="policy", messages=messages, max_tokens=128)
            said = answer.choices[0].message.content or "(nothing)"
            answers += ANSWER.format(session["session_id"], html.escape(said))
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(PAGE.format(question, answers).encode())

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        for session_id in form["shown"]:
            reward = float(session_id in form["better"])
            self.gateway.post(f"/sessions/{session_id}/complete", json={"reward": reward})
        self.send_response(303)  # on to the next question
        self.send_header("location", "/")
        self.end_headers()


def main(address: str = "http://127.0.0.1:8090", port: str = "8099") -> None:
    Page.gateway = httpx.Client(base_url=address, timeout=90)
    server = HTTPServer(("127.0.0.1", int(port)), Page)
    print(f"Choose at http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

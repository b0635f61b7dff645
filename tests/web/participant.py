"""A participant without a browser: what the pages' forms and scripts send, over one kept connection."""

import http.client
import json
import re
import time
from urllib.parse import urlencode

SCALES = ("relevance", "quality", "musicality")


class Participant:
    def __init__(self, port, cookie=""):
        self.port, self.cookie = port, cookie
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.seconds = []
        self.acknowledged = {}

    def ask(self, method, path, body=None, kind="application/json", accept="*/*"):
        headers = {"Accept": accept, "Cookie": self.cookie} | ({"Content-Type": kind} if body is not None else {})
        started = time.perf_counter()
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        data = answer.read()
        self.seconds.append(time.perf_counter() - started)
        if answer.getheader("set-cookie"):
            self.cookie = answer.getheader("set-cookie").split(";")[0]
        return answer.status, data, answer.getheader("location")

    def begin(self, form=None, **changed):
        form = form or re.search(r'name="form" value="(.+?)"', self.ask("GET", "/")[1].decode())[1]
        fields = {"form": form, "age": "25-34", "background": "I listen to music only", "consent": "yes"} | changed
        return self.ask("POST", "/start", urlencode(fields), "application/x-www-form-urlencoded", "text/html")

    def clips(self, place):
        status, page, _ = self.ask("GET", f"/group/{place}", accept="text/html")
        assert status == 200, page
        return len(re.findall(r'data-at="', page.decode()))

    def hear(self, place, position, sleep=time.sleep, seconds=0.6):
        status, data, _ = self.ask("GET", f"/clip/{place}/{position}")
        assert status == 200
        sleep(seconds)
        return (*self.ask("POST", f"/heard/{place}/{position}", "{}")[:2], data)

    def rate(self, place, position, scale, value):
        status, data, _ = self.ask("POST", f"/rate/{place}/{position}", json.dumps({"scale": scale, "value": value}))
        if status == 200:
            self.acknowledged[place, position, scale] = value
        return status, json.loads(data)

    def do_group(self, place, number=0):
        for position in range(1, self.clips(place) + 1):
            assert self.hear(place, position)[0] == 200
            for k, scale in enumerate(SCALES):
                assert self.rate(place, position, scale, 1 + (number + place + position + k) % 5)[0] == 200
        return self.ask("POST", f"/group/{place}", "", "application/x-www-form-urlencoded")

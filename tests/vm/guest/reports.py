"""Sends the agent's report as one line of JSON to everyone who connects to 127.0.0.1:9700.

A process of its own, because a client of the agent takes seconds to start on an emulated processor.
"""

import json
import socketserver

from agent.client import Client, ClientError
from agent.exporters.report_json import to_json

ENDPOINT = "unix:/run/nodediag/nodediag.sock"


class Report(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            with Client(ENDPOINT) as client:
                report = to_json(client.get_node_report())
        except ClientError as error:
            report = {"error": str(error)}
        self.wfile.write(json.dumps(report).encode() + b"\n")


socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("127.0.0.1", 9700), Report).serve_forever()

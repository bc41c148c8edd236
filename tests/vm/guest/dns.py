"""A DNS server on 127.0.0.1 that answers every query with no records and no error."""

import socket

QUERY_HEADER = 12
RESPONSE_NO_ERROR = b"\x81\x80"

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("127.0.0.1", 53))
    while True:
        query, client = server.recvfrom(512)
        if len(query) > QUERY_HEADER:
            server.sendto(query[:2] + RESPONSE_NO_ERROR + query[4:6] + bytes(6) + query[QUERY_HEADER:], client)

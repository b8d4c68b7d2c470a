"""A provider of models on the second host, over TLS, and the resolver that knows where it is. Asked how much it has seen, it tells it, on port 8053.

    provider.py DIRECTORY

DIRECTORY has its key and certificates: `server` is good, `misnamed` is another name's, `untrusted` another authority's. What an answer is like the request says:
see `answer`."""

import asyncio
import json
import socket
import ssl
import struct
import sys

ADDRESS, UNREACHED, RESOLVER = "192.0.2.10", "2001:db8::10", "192.0.2.20"
seen = []


async def request(reader):
    """The head of a request, its headers and its body; nothing where the client is gone."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    named = {name.lower(): value for name, value in headers.items()}
    body = b""
    if "content-length" in named:
        body = await reader.readexactly(int(named["content-length"]))
    elif named.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return head[0], headers, body


def event(**fields):
    return f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()


def messages(count):
    """The pieces of an answer as Anthropic's API has it."""
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "x", "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield event(type="message_start", message=message) + event(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
    for number in range(count):
        yield event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": f"piece{number} "})
    yield (
        event(type="content_block_stop", index=0)
        + event(type="message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=usage)
        + event(type="message_stop")
    )


def chat(count):
    """And as OpenAI's has it."""
    for number in range(count + 1):
        last = number == count
        choice = {"index": 0, "delta": {} if last else {"role": "assistant", "content": f"piece{number} "}, "finish_reason": "stop" if last else None}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "x", "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"


async def answer(writer, line, body):
    """Five pieces, or as many as `PIECES=` in the body says, a fifth of a second apart, or `GAP=` milliseconds; `REDIRECT` is sent elsewhere,
    `STATUS=` is answered so, `BIG=` has a header of so many bytes, and `RAW` ends with the connection, without lengths. Whether the connection ends."""

    def said(word, default):
        at = body.find(word)
        return default if at < 0 else int(body[at + len(word):at + len(word) + 6].split(b" ")[0])

    if b"REDIRECT" in body:
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/\r\ncontent-length: 0\r\n\r\n")
        return False
    if b"STATUS=" in body or line.startswith("GET"):
        text = b'{"data":[]}'
        writer.write(b"HTTP/1.1 %d As asked\r\ncontent-type: application/json\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n%s" % (said(b"STATUS=", 200), len(text), text))
        return False
    whole = b"RAW" in body
    framing = b"connection: close" if whole else b"transfer-encoding: chunked"
    framing += b"\r\nx-big: " + b"y" * said(b"BIG=", 0)
    # What nginx would obey.
    framing += b"\r\nx-accel-buffering: yes\r\nx-accel-limit-rate: 1\r\nlocation: https://elsewhere.example/\r\nset-cookie: a=b"
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%s\r\n\r\n" % framing)

    for piece in (chat if "/chat/completions" in line else messages)(said(b"PIECES=", 5)):
        writer.write(piece if whole else b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        if b"piece" in piece:
            await asyncio.sleep(said(b"GAP=", 200) / 1000)
    if not whole:
        writer.write(b"0\r\n\r\n")
    return whole


async def converse(reader, writer):
    try:
        over = False
        while not over:
            line, headers, body = await request(reader)
            seen.append({"line": line, "headers": headers, "bytes": len(body), "sni": writer.get_extra_info("ssl_object").asked})
            over = await answer(writer, line, body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def tell(reader, writer):
    """What was seen, and forgets it."""
    await reader.readuntil(b"\r\n\r\n")
    text = json.dumps(seen).encode()
    seen.clear()
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + text)
    await writer.drain()
    writer.close()


class Names(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, peer):
        end = query.index(b"\0", 12) + 5
        kind = query[end - 3]
        # As most providers, it has IPv6, and the host gets no connection there.
        found = [address for type, address in ((1, socket.inet_aton(ADDRESS)), (28, socket.inet_pton(socket.AF_INET6, UNREACHED))) if type == kind]
        records = b"".join(struct.pack(">HHHIH", 0xc00c, kind, 1, 5, len(address)) + address for address in found)
        self.transport.sendto(query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0) + query[12:end] + records, peer)


def context(directory, certificate):
    def asked(peer, name, _):
        peer.asked = name

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(f"{directory}/{certificate}.crt", f"{directory}/server.key")
    made.sni_callback = asked
    return made


async def main(directory):
    for port, certificate in {443: "server", 8443: "server", 9443: "misnamed", 9444: "untrusted"}.items():
        await asyncio.start_server(converse, ADDRESS, port, ssl=context(directory, certificate), limit=1 << 20, backlog=1000)
    await asyncio.get_running_loop().create_datagram_endpoint(Names, (RESOLVER, 53))
    await asyncio.start_server(tell, RESOLVER, 8053)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))

#!/usr/bin/env python3
"""Stand-ins for the vendors of speech and models, each under its own paths, all in one server on loopback.

    python standin.py --port 0

prints the port as one line, serves until its standard input closes (at most `--limit-s` seconds), and needs what
`requirements.txt` names. Where a client would be told `wss://api.deepgram.com`, tell it `ws://127.0.0.1:PORT`.

What a stand-in does is decided by the test. `POST /control/NAME` takes a script as JSON, which replaces the one before and
forgets what was seen; it holds for the connections and requests that begin afterwards. `GET /control/NAME` tells what was seen.
`?key=KEY` behind either is about the clients that use this API key only, so that tests beside each other do not meet.
The names are those in `standins/__init__.py`.

A script is an object; every part may be left out, and an unknown name in it is answered with 400 and a sentence:

    key         the only key that is accepted; without it any that is not empty
    hears       what a recogniser hears:
        utterances       list of texts: the n-th stretch of speech (by its loudness) gets the n-th text. An empty text is speech that is
                         not understood; so is what comes after the list
        repeat           true: after the last text the first comes again
        counter          "script" (default): the texts go on over reconnections, and words that were final are not heard again;
                         "connection": each connection begins with the first text
        word_ms          a word is in the interim results after this much of its stretch (250)
        interim_ms       sound between interim results (200)
        silence_ms       silence that ends a stretch; without it what the client asked for, or the vendor's own
        confidence       of all words (.98)
        eager_ms         silence after which a turn may be over, for vendors that say so early
        events           instead of utterances: a list of {"ms" or "sample": place in the sound of this connection, "event": "started" |
                         "interim" | "final" | "ended" | "eager" | "resumed", "text": …, "from_ms": …}. "ended" is a final that ends the turn
    says        how a voice speaks; its sound is a buzz with one syllable per letter, silent at spaces:
        ms_per_character length (60)
        chunk_ms         sound in one message (100)
        first_ms         wait before the first sound of an answer (0)
        pace             times real time; without it as fast as it goes
    replies     what a model answers: the n-th request gets the n-th of the list, later ones the last:
                {"text": …, "tools": [{"name": …, "arguments": {…}, "id": …}], "finish": the vendor's word for why it ends, "error": the
                vendor's word for an error after the text, "first_ms": wait before the first piece, "piece_ms": between two; a piece is a
                word}; a speech-to-speech model answers turns so, too
    session     vendor's own values: "idle_s" (the vendor ends a silent connection), "limit_s" and the like, named in its module
    faults      list: the n-th connection (or request) since the script was set has the n-th fault, null is none; later ones none. With
                "always": true beside "kind", later ones have it too. {"kind": …, "at": PLACE, …}:
        status           refuses with "status" (401, 429, 500, …), "retry_after" seconds if given; has no place
        no_answer        takes the request, or the one to open a connection, and never answers it; has no place
        stall            goes on reading and answering pings, but sends nothing more; the next connection hears what it kept to itself
        half_open        neither reads, sends nor answers pings any more; the connection stays
        close            "code" 1000, 1011, …; 1006 is a connection that is gone without a word; "reason" if given
        garbage          one frame that is none of the vendor's, "frame": "text" (default), "binary" or "json"
        double_finals    each final comes twice; has no place
        empty_finals     before each final comes one without words; has no place
        wrong_rate       sound at "rate" instead of what was asked; has no place
        drip             waits "ms" before each message
    PLACE is an object; the fault comes once all are reached: "sound_ms" (heard in this connection), "audio_ms" (spoken), "sent",
    "received" (messages), "finals". Without it, the fault is there from the start.

What was seen: {"connections": [{"path", "query", "headers" (never a key: its scheme and "(key)"), "messages": those of the client in order, with
{"sound": bytes} for sound, one entry for many in a row; "sent": the kinds of ours in order, "sound_bytes", "sound_ms", "audio_ms", "status",
"closed": {"by": "client" | "server", "code"} or null while open}], "dropped": entries that were too many to keep}.
"""

import argparse
import asyncio
import sys
import threading

from aiohttp import web

import standins
from standins.core import ScriptError, Vendor


def application() -> web.Application:
    app = web.Application(client_max_size=16 << 20)
    vendors = {}
    for name, module in standins.SERVICES.items():
        vendors[name] = Vendor(name)
        app.add_routes(module.routes(vendors[name]))

    def vendor_of(request) -> Vendor:
        name = request.match_info["name"]
        if name not in vendors:
            raise web.HTTPNotFound(text=f"no stand-in {name}; there are {', '.join(vendors)}\n")
        return vendors[name]

    async def script(request):
        vendor = vendor_of(request)
        try:
            vendor.set_script(await request.json(), request.query.get("key"))
        except (ScriptError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.json_response({})

    async def seen(request):
        return web.json_response(vendor_of(request).seen(request.query.get("key")))

    app.add_routes([web.post("/control/{name}", script), web.get("/control/{name}", seen)])
    return app


async def serve(port: int, limit_s: float):
    runner = web.AppRunner(application(), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_end_of_input():
        while sys.stdin.buffer.read(4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    try:
        await asyncio.wait_for(stop.wait(), limit_s)
    except TimeoutError:
        print(f"stand-ins stop after {limit_s:g} s", file=sys.stderr)
    await runner.cleanup()


def main():
    parser = argparse.ArgumentParser(description="Stand-ins for the vendors of speech and models.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--limit-s", type=float, default=3600, help="stops after this long whatever happens")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.limit_s))


if __name__ == "__main__":
    main()

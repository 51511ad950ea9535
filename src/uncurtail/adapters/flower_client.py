"""The ClientApp: a thin shim that hands an order to the site's trainer and brings the answer back.

Flower starts a fresh process for every message, so nothing heavy is imported here: the model, its
optimizer and its data live in the trainer, behind a Unix socket named in the node's configuration.
"""

import socket

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Relay one order. The trainer keeps its answer, so a lost reply can be asked for again."""
    order = message.content.config_records["order"]["json"]
    answer = exchange(str(context.node_config["socket"]), str(order))
    return Message(RecordDict({"reply": ConfigRecord({"json": answer})}), reply_to=message)


def exchange(path: str, line: str) -> str:
    """Send one line to the trainer and wait for its one line.

    Raises:
        ConnectionError: The trainer is gone, or went while it worked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        with connection.makefile("rw", encoding="utf-8", newline="\n") as stream:
            stream.write(line + "\n")
            stream.flush()
            answer = stream.readline()
    if not answer.endswith("\n"):
        raise ConnectionError("the trainer went away before it answered")
    return answer.rstrip("\n")

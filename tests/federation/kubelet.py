"""What the kubelet does to arguments: `$(NAME)` from the environment, `$$` to `$`."""

import re


def expanded(text: str, env: dict[str, str]) -> str:
    def one(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return env.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", one, text)

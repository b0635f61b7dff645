"""One file per sub-app. A command parses, calls one function of `stages`, and shows what came back."""

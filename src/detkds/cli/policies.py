"""``detkds policies``: the policies that ship with the package, and any policy file."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds.cli.common import AsJson, answering, print_json, stdout

app = typer.Typer(help="The shipped policies, and any policy file.", no_args_is_help=True)


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the policies that ship with the package."""
    with answering():
        from detkds.policy import list_policies, load_policy

        policies = [load_policy(name) for name in list_policies()]
        if as_json:
            print_json([policy.to_dict() for policy in policies])
            return
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD)
        for column in ("policy", "terms", "knowledge", "source"):
            table.add_column(column, justify="right" if column == "terms" else "left", no_wrap=column == "policy")
        for policy in policies:
            kinds = ", ".join(term.to_dict()["knowledge"] for term in policy)
            table.add_row(*map(escape, (policy.name, str(len(policy)), kinds, policy.source)))
        stdout().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A shipped policy, or the path of a file.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Check a policy and show its terms."""
    with answering():
        from detkds.policy import load_policy

        policy = load_policy(name)
        if as_json:
            print_json({**policy.to_dict(), "key": policy.key})
            return
        from rich.text import Text

        from detkds.cli.tables import policy_table

        console = stdout()
        console.print(policy_table(policy.to_dict(), policy.name or name))
        console.print(Text("\n".join(line for line in (policy.source, f"canonical form: {policy.key}") if line)))

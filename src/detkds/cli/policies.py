"""``detkds policies``: the policies that ship with the package, and any policy file."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds.cli.common import AsJson, answering, print_json, stdout

app = typer.Typer(help="The shipped policies, and any policy file.", no_args_is_help=True)


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the policies that ship with the package, and which are the published loss exactly; show says why not."""
    with answering():
        from detkds.policy import list_policies, load_policy

        policies = [load_policy(name) for name in list_policies()]
        if as_json:
            print_json([policy.to_dict() for policy in policies])
            return
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD)
        for column in ("policy", "source", "fidelity"):
            table.add_column(column, no_wrap=column != "source")
        for policy in policies:
            table.add_row(policy.name, policy.source, policy.fidelity.partition(":")[0] or "-")
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
        lines = (policy.source, policy.formula, policy.fidelity, f"canonical form: {policy.key}")
        console.print(Text("\n".join(filter(None, lines))))

"""The documented examples as they are pasted: curl in a shell, and Python with requests."""

import asyncio
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.gateway.world import Customer, World, cost, environment

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
AHEAD = max(2027, datetime.now(UTC).year + 1)
"""The year of the documented expiry, as long as it lies ahead."""


class Examples:
    """Runs what the documentation shows, with names for what it leaves to the reader."""

    def __init__(self, world: World, customer: Customer) -> None:
        self.world = world
        self.names = {
            "BASE": f"http://127.0.0.1:{world.gateway.port}",
            "YOUR_API_KEY": customer.key,
            "YOUR_CREDIT_ID": customer.credit_id,
        }

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def filled(self, text: str, names: dict[str, str]) -> str:
        for name, value in (self.names | names).items():
            text = text.replace(name, value)
        return text

    async def shell(self, text: str, **names: str) -> Any:
        """What a command line prints, as JSON."""
        return json.loads(await asyncio.to_thread(self._run, "sh", "-c", self.filled(text, names)))

    async def python(self, text: str) -> str:
        """What a script prints."""
        return await asyncio.to_thread(self._run, sys.executable, "-c", self.filled(text, {}))


@pytest.fixture
def examples(world: World, customer: Customer) -> Examples:
    return Examples(world, customer)


async def test_PPQ_016_models_in_python(examples: Examples) -> None:
    script = """
import requests
url = "BASE/v1/models"
response = requests.get(url)
import json; print(json.dumps(response.json()))
"""
    assert "test/story" in {one["id"] for one in json.loads(await examples.python(script))["data"]}


async def test_PPQ_024_a_chat_in_python(examples: Examples, customer: Customer) -> None:
    script = """
import requests
api_key = "YOUR_API_KEY"
url = "BASE/chat/completions"
headers = {
    "Content-Type": "application/json",
    "Authorization": f"Bearer {api_key}"
}
data = {
    "model": "claude-sonnet-4.6",
    "messages": [{"role": "user", "content": "Hello, how are you?"}]
}
response = requests.post(url, json=data, headers=headers)
print(response.json()["choices"][0]["message"]["content"])
"""
    assert await examples.python(script) == " word" * 8 + "\n"
    books = await customer.books()
    assert books.charged == cost(15, 8) and books.rows[0]["model"] == "anthropic/claude-sonnet-4.6"


@needs_curl
async def test_PPQ_020_embedding_models(examples: Examples) -> None:
    listed = await examples.shell("curl BASE/v1/models?type=embedding")
    assert [one["id"] for one in listed["data"]] == ["test/words"]


@needs_curl
async def test_PPQ_147_an_account(examples: Examples) -> None:
    made = await examples.shell("curl -X POST BASE/accounts/create")
    assert made["credit_id"] and made["api_key"].startswith("sk-")


@needs_curl
async def test_PPQ_149_a_balance(examples: Examples) -> None:
    command = """curl -X POST "BASE/credits/balance" \\
        -H "Content-Type: application/json" \\
        -d '{"credit_id":"YOUR_CREDIT_ID"}'"""
    assert (await examples.shell(command))["balance"] == 1


@needs_curl
async def test_PPQ_184_the_history(examples: Examples, customer: Customer) -> None:
    await customer.chat()
    page = await examples.shell(
        """curl -X GET "BASE/queries/history?page=1&page_count=20" \\
        -H "Authorization: Bearer YOUR_API_KEY" """
    )
    assert page["pagination"] == {"page": 1, "page_count": 20, "total": 1, "total_pages": 1}


@needs_curl
async def test_PPQ_197_PPQ_203_PPQ_206_the_life_of_a_key(examples: Examples) -> None:
    made = await examples.shell(
        """curl -X POST "BASE/keys" \\
        -H "Content-Type: application/json" \\
        -H "x-credit-id: YOUR_CREDIT_ID" \\
        -d '{
            "name": "my-app-key",
            "usage_limit_usd": 10.00,
            "reset_period": "monthly",
            "expire_at": "YEAR-01-01T00:00:00Z"
        }'""",
        YEAR=str(AHEAD),
    )
    key_id = made["data"]["_id"]
    assert made["status"] == "success" and made["data"]["expire_at"] == f"{AHEAD}-01-01T00:00:00.000Z"
    listed = await examples.shell('curl -X GET "BASE/keys" -H "x-credit-id: YOUR_CREDIT_ID"')
    assert [one["name"] for one in listed["data"]] == ["Default", "my-app-key"]
    changed = await examples.shell(
        """curl -X PATCH "BASE/keys/KEY_ID" \\
        -H "Content-Type: application/json" \\
        -H "x-credit-id: YOUR_CREDIT_ID" \\
        -d '{
            "name": "updated-key-name",
            "usage_limit_usd": 25.00,
            "reset_period": "weekly"
        }'""",
        KEY_ID=key_id,
    )
    assert (changed["data"]["name"], changed["data"]["usage_limit_usd"]) == ("updated-key-name", 25)
    one = await examples.shell('curl -X GET "BASE/keys/KEY_ID" -H "x-credit-id: YOUR_CREDIT_ID"', KEY_ID=key_id)
    assert one["data"]["reset_period"] == "weekly" and one["data"]["deleted_at"] is None
    gone = await examples.shell('curl -X DELETE "BASE/keys/KEY_ID" -H "x-credit-id: YOUR_CREDIT_ID"', KEY_ID=key_id)
    assert gone == {"status": "success", "message": "API key revoked successfully"}


@needs_curl
async def test_PPQ_006_a_key_in_the_api_key_header_and_a_body_without_a_content_type(examples: Examples) -> None:
    answer = await examples.shell(
        """curl -X POST BASE/v1/chat/completions -H "api-key: YOUR_API_KEY" \\
        -d '{"model": "test/story", "messages": [{"role": "user", "content": "hi"}]}'"""
    )
    assert answer["choices"][0]["finish_reason"] == "stop"

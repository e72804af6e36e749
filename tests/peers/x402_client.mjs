// Pays for one POST with the x402 client of npm, then shows the same payment again for a second body.
// node x402_client.mjs v1|v2 URL PRIVATE_KEY FIRST_BODY SECOND_BODY
// Prints one JSON document: the two answers, and how many requests the first took.
import { privateKeyToAccount } from "viem/accounts";
import { createWalletClient, http } from "viem";
import { baseSepolia } from "viem/chains";

const [version, url, key, first, second] = process.argv.slice(2);
const account = privateKeyToAccount(key);
const names = ["payment-signature", "x-payment"];
let requests = 0;
let payment = {};

async function watched(input, init) {
  const request = new Request(input, init);
  requests += 1;
  for (const name of names) if (request.headers.has(name)) payment = { [name]: request.headers.get(name) };
  return fetch(request);
}

async function paying() {
  if (version === "v1") {
    const { wrapFetchWithPayment } = await import("x402-fetch");
    return wrapFetchWithPayment(watched, createWalletClient({ account, transport: http(), chain: baseSepolia }));
  }
  const { wrapFetchWithPaymentFromConfig } = await import("@x402/fetch");
  const { ExactEvmScheme } = await import("@x402/evm");
  return wrapFetchWithPaymentFromConfig(watched, {
    schemes: [{ network: "eip155:84532", client: new ExactEvmScheme(account) }],
  });
}

const post = (body, headers = {}) => ({
  method: "POST",
  headers: { "content-type": "application/json", ...headers },
  body,
});
const read = async (answer) => ({
  status: answer.status,
  headers: Object.fromEntries(answer.headers),
  body: await answer.text(),
});

const paid = await read(await (await paying())(url, post(first)));
const taken = requests;
const again = await read(await fetch(url, post(second, payment)));
console.log(JSON.stringify({ paid, again, requests: taken }));

// A js-libp2p node that sdnet's interoperability tests drive.
//
// It is started as `node peer.mjs '{"mdns": false, "transport": "tcp"}'`. Each line of standard input is one request
// `{"id": 1, "do": "ping", ...}`, answered by `{"id": 1, "ok": ...}` or `{"id": 1, "error": {"name", "message"}}`; what
// happens otherwise is told as `{"event": ...}`. It ends when standard input does.

import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { mdns } from '@libp2p/mdns'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const ECHO = '/sdnet-interop/echo/1.0.0'
const DIGEST = '/sdnet-interop/digest/1.0.0'
const HOLD = '/sdnet-interop/hold/1.0.0'
const STREAMS = { maxInboundStreams: 256, maxOutboundStreams: 256 }
const PIECE_BYTES = 65536

const options = JSON.parse(process.argv[2] ?? '{}')
const held = new Map()

const tell = message => process.stdout.write(JSON.stringify(message) + '\n')
const sha256 = () => createHash('sha256')

const [transport, listen] = {
  tcp: [tcp, '/ip4/127.0.0.1/tcp/0'],
  ws: [webSockets, '/ip4/127.0.0.1/tcp/0/ws'],
  // It comes as a binary, which not every platform has.
  quic: [options.transport === 'quic' ? (await import('@chainsafe/libp2p-quic')).quic : undefined, '/ip4/127.0.0.1/udp/0/quic-v1']
}[options.transport ?? 'tcp']

const node = await createLibp2p({
  addresses: { listen: [listen] },
  transports: [transport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  peerDiscovery: options.mdns === true ? [mdns({ interval: 1000 })] : [],
  services: { identify: identify(), ping: ping() }
})

const connectionTo = peerId => {
  const connections = node.getConnections(peerIdFromString(peerId))
  if (connections.length === 0) {
    throw new Error(`there is no connection to ${peerId}`)
  }
  return connections[0]
}

const openStream = (peerId, protocol) => connectionTo(peerId).newStream(protocol, STREAMS)

const describe = connection => ({
  peer: connection.remotePeer.toString(),
  address: connection.remoteAddr.toString(),
  direction: connection.direction,
  encryption: connection.encryption,
  multiplexer: connection.multiplexer
})

async function * random (bytes, hash) {
  for (let left = bytes; left > 0; left -= PIECE_BYTES) {
    const piece = randomBytes(Math.min(left, PIECE_BYTES))
    hash.update(piece)
    yield piece
  }
}

async function receiveAll (stream) {
  const hash = sha256()
  let bytes = 0
  for await (const piece of stream.source) {
    bytes += piece.byteLength
    for (const part of piece) {
      hash.update(part)
    }
  }
  return { bytes, digest: hash.digest('hex') }
}

// The sink ends our direction when its source has ended, while the other direction goes on.
async function sendAndReceive (peerId, protocol, bytes) {
  const stream = await openStream(peerId, protocol)
  const sent = sha256()
  const [, received] = await Promise.all([stream.sink(random(bytes, sent)), receiveAll(stream)])
  return { sent: sent.digest('hex'), received }
}

async function digestOf (peerId, bytes) {
  const stream = await openStream(peerId, DIGEST)
  const sent = sha256()
  await stream.sink(random(bytes, sent))
  const answer = []
  for await (const piece of stream.source) {
    answer.push(piece.subarray())
  }
  return { sent: sent.digest('hex'), answer: Buffer.concat(answer).toString('hex') }
}

// Send one byte, send no more, and tell how the stream ends.
function hold (stream) {
  const key = held.size
  held.set(key, stream)
  stream.sink((async function * () {
    yield new Uint8Array([1])
    await new Promise(() => {})
  })()).catch(() => {})
  const reading = async () => {
    for await (const piece of stream.source) {
      tell({ event: 'held-data', key, bytes: piece.byteLength })
    }
  }
  reading().then(
    () => tell({ event: 'held-end', key, how: 'eof' }),
    error => tell({ event: 'held-end', key, how: error.name })
  )
  return key
}

await node.handle(ECHO, ({ stream }) => {
  stream.sink(stream.source).catch(error => stream.abort(error))
}, STREAMS)

await node.handle(DIGEST, async ({ stream }) => {
  const { digest } = await receiveAll(stream)
  await stream.sink([Buffer.from(digest, 'hex')])
}, STREAMS)

await node.handle(HOLD, ({ stream }) => {
  tell({ event: 'held', key: hold(stream) })
}, STREAMS)

const actions = {
  dial: async ({ peer, addresses, force = false }) =>
    describe(await node.dial(addresses.map(address => multiaddr(`${address}/p2p/${peer}`)), { force })),
  connections: async ({ peer }) => node.getConnections(peerIdFromString(peer)).map(describe),
  'hang-up': async ({ peer }) => { await node.hangUp(peerIdFromString(peer)) },
  ping: async ({ peer }) => node.services.ping.ping(peerIdFromString(peer)),
  // Yamux's own ping, which the public interface does not reach.
  'muxer-ping': async ({ peer }) => connectionTo(peer).muxer.ping(),
  echo: async ({ peer, bytes }) => sendAndReceive(peer, ECHO, bytes),
  digest: async ({ peer, bytes }) => digestOf(peer, bytes),
  echoes: async ({ peer, streams, bytes }) =>
    Promise.all(Array.from({ length: streams }, () => sendAndReceive(peer, ECHO, bytes))),
  hold: async ({ peer }) => hold(await openStream(peer, HOLD)),
  reset: async ({ key }) => { held.get(key).abort(new Error('reset on request')) }
}

node.addEventListener('connection:open', ({ detail }) => tell({ event: 'connected', ...describe(detail) }))
node.addEventListener('connection:close', ({ detail }) => tell({ event: 'disconnected', ...describe(detail) }))
node.addEventListener('peer:identify', ({ detail }) => tell({
  event: 'identified',
  peer: detail.peerId.toString(),
  agent: detail.agentVersion,
  protocolVersion: detail.protocolVersion,
  protocols: detail.protocols,
  listen: detail.listenAddrs.map(String),
  observed: detail.observedAddr?.toString()
}))
node.addEventListener('peer:discovery', ({ detail }) => tell({
  event: 'discovered',
  peer: detail.id.toString(),
  addresses: detail.multiaddrs.map(String)
}))

tell({ event: 'ready', peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(one => one.decapsulate('/p2p').toString()) })

for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: action, ...parameters } = JSON.parse(line)
  actions[action](parameters).then(
    ok => tell({ id, ok: ok ?? null }),
    error => tell({ id, error: { name: error.name, message: error.message } })
  )
}
await node.stop()
process.exit(0)

// Node 20 has no WebSocket of its own, and Nostr clients take the global one when they are loaded: import this first.
import { WebSocket } from "ws";

globalThis.WebSocket ??= WebSocket;

//! Reading what the host wrote beside a request's slots.

use splitrpc_arena::{Arena, EXTERNAL_POOL, META_BYTES, Run, Span};
use splitrpc_engine::{CompletionHead, Time};
use splitrpc_ring::Completion;
use splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
use splitrpc_wire::{MAX_STATUS_TEXT, Manifest, Status, StatusPayload};

use crate::storage::Engine;

/// Bytes of the longest status payload.
const STATUS_LEN: usize = 8 + MAX_STATUS_TEXT;

/// A copy of a meta area: what the host wrote beside a request's slots.
pub type Meta = [u8; META_BYTES as usize];

/// Gives a completion to the engine. What the meta area says is copied to `bytes` first and only the copy is looked at,
/// since the host may write there at any time.
pub(crate) fn deliver(engine: &mut Engine<'_>, arena: &Arena, now: Time, completion: &Completion, bytes: &mut Meta) {
    // Where there is no meta area, what the last one said must not be read again.
    bytes[..MANIFEST_HEAD_LEN].fill(0);
    let head = if completion.status == Status::Ok {
        with_meta(arena, completion.output, |meta| copy_manifest(meta, bytes));
        Manifest::parse(bytes).map_or(CompletionHead::Nonsense, CompletionHead::Manifest)
    } else {
        let input = engine.input_of(completion.request);
        with_meta(arena, input.unwrap_or(Run::NONE), |meta| {
            meta.copy_to(&mut bytes[..STATUS_LEN]);
        });
        StatusPayload::parse(bytes).map_or(CompletionHead::Nonsense, CompletionHead::Status)
    };
    engine.handle_completion(now, completion, &head);
}

fn with_meta(arena: &Arena, run: Run, copy: impl FnOnce(Span<'_>)) {
    if run.pool != EXTERNAL_POOL {
        if let Some(meta) = arena.meta(run) {
            copy(meta);
        }
    } else if let Some(lease) = arena.lease(run) {
        copy(lease.meta());
    }
}

/// Copies a manifest out of a meta area, and no more of it than it says it is long. If somebody changes it meanwhile, the
/// copy does not parse, or is what it has become.
pub fn copy_manifest(meta: Span<'_>, bytes: &mut Meta) {
    meta.copy_to(&mut bytes[..MANIFEST_HEAD_LEN]);
    if let (Ok(len), Some(rest)) =
        (Manifest::peek_len(bytes), meta.slice(MANIFEST_HEAD_LEN, meta.len() - MANIFEST_HEAD_LEN))
    {
        rest.copy_to(&mut bytes[MANIFEST_HEAD_LEN..len]);
    }
}

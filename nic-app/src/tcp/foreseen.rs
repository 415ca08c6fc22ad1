//! Small requests that look like the one before them: one system call puts the head aside and the tensor data into the
//! slots that the request would get. If the guess was wrong, the data is moved, and counted.

use std::mem;

use splitrpc_arena::{IoVec, Run};
use splitrpc_wire::{HEADER_LEN, Manifest};

use super::connection::{Connection, Reading};
use super::read::{Context, Over, Reader, Step, complete, finish};

impl Reader {
    /// Reads a frame that looks like the last request: head aside, tensor data into the slots it would get.
    pub(super) fn read_foreseen(
        &mut self,
        cx: &mut Context<'_, '_>,
        connection: &mut Connection,
        run: Run,
    ) -> Result<Step, Over> {
        let (head_len, data) = (connection.shape.head_len(), connection.shape.data() as usize);
        let list = self.list.begin();
        list.push(IoVec::from(&mut self.head[..head_len]));
        each_tensor(connection, |tensor, bytes| {
            list.extend(cx.arena.span(run, tensor, 0, bytes).map(|span| span.iovec()));
        });
        let want: usize = list.iter().map(IoVec::len).sum();
        if want != head_len + data {
            return Err(Over);
        }
        let step = finish(connection.stream.readv(list), want)?;
        let Step::Read { bytes, .. } = step else { return Ok(step) };
        let Some(landed) = bytes.checked_sub(head_len) else {
            self.feed_head(cx, connection, bytes)?;
            return Ok(step);
        };
        let header = connection.shape.recognise(&self.head[..head_len]);
        if header.is_none() {
            // Before anything else can be given these slots.
            self.pick_up(cx, connection, run, landed);
        }
        let Some(header) = header else {
            self.misjudged += 1;
            self.feed_head(cx, connection, head_len)?;
            self.feed_spill(cx, connection, landed)?;
            return Ok(step);
        };
        let head = mem::take(&mut self.head);
        let dispatched = self.dispatch(cx, connection, &header, &head[HEADER_LEN..head_len]);
        self.head = head;
        dispatched?;
        match &mut connection.reading {
            Reading::Payload(payload) if payload.placement.run == run => {
                payload.done = landed as u32;
                if payload.left() == 0 {
                    self.foreseen += 1;
                    complete(cx, connection);
                }
            }
            _ => {
                self.misjudged += 1;
                self.pick_up(cx, connection, run, landed);
                self.feed_spill(cx, connection, landed)?;
            }
        }
        Ok(step)
    }

    /// Copies what landed in the wrong slots out of them.
    fn pick_up(&mut self, cx: &Context<'_, '_>, connection: &Connection, run: Run, landed: usize) {
        let mut spill = &mut self.spill[..landed];
        each_tensor(connection, |tensor, bytes| {
            let all = mem::take(&mut spill);
            let (part, rest) = all.split_at_mut(all.len().min(bytes as usize));
            spill = rest;
            if let Some(span) = cx.arena.span(run, tensor, 0, part.len() as u32) {
                span.copy_to(part);
            }
        });
    }

    fn feed_spill(&mut self, cx: &mut Context<'_, '_>, connection: &mut Connection, bytes: usize) -> Result<(), Over> {
        let spill = mem::take(&mut self.spill);
        let fed = self.feed(cx, connection, &spill[..bytes]);
        self.spill = spill;
        fed
    }
}

/// Calls `f` with each tensor that the connection's next request is expected to have, and its bytes.
fn each_tensor(connection: &Connection, mut f: impl FnMut(u16, u32)) {
    let manifest = connection.shape.manifest().and_then(|manifest| Manifest::parse(manifest).ok());
    for tensor in manifest.iter().flat_map(Manifest::tensors).filter(|t| t.bytes > 0) {
        f(tensor.handle, tensor.bytes);
    }
}

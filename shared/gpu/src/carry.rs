//! Many small copies in one kernel: frames into a slot, and a slot into frames.

use splitrpc_arena::Run;
use splitrpc_cuda::{Context, Function, Launch, Module};

use crate::error::GpuError;

/// Pieces that one launch carries, by kernel: as many as fit its parameters, so that it fetches no list over the bus. To hand over
/// the parameters takes the longer the more there are.
pub(crate) const FEW: usize = 16;
pub(crate) const SOME: usize = 128;
/// Where the driver takes 32,764 bytes of parameters, as it does since CUDA 12.1.
pub(crate) const MANY: usize = 2048;
/// Bytes of a piece that one block carries.
const BLOCK_BYTES: u32 = 8192;
/// Bytes up to which neighbours are merged: there are as many blocks for each piece as for the longest.
const MERGED: u32 = 64 << 10;
/// Threads of a block. Each carries 16 bytes, and 16 more half a block's bytes further on.
const BLOCK_THREADS: u32 = 256;

/// Bytes that belong somewhere else: part of a frame, and where in the slots it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The frame, a run of a pool of [frames](crate::GpuArena::new).
    pub frame: Run,
    /// Where in the frame the bytes begin.
    pub frame_offset: u32,
    /// The slots.
    pub slot: Run,
    /// The tensor.
    pub tensor: u16,
    /// Where in its rows the bytes belong.
    pub offset: u32,
    /// How many.
    pub len: u32,
}

/// One copy, by distances from addresses that all copies of a launch share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Entry {
    from: u32,
    to: u32,
    len: u32,
}

/// Copies of one launch, `N` at most: the kernel's parameter.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Entries<const N: usize> {
    from: u64,
    to: u64,
    all: [Entry; N],
    /// Not for the kernel.
    count: u32,
}

impl<const N: usize> Entries<N> {
    /// Bytes that the kernel declares.
    const BYTES: usize = 16 + N * size_of::<Entry>();

    pub(crate) fn new() -> Entries<N> {
        Entries { from: 0, to: 0, all: [Entry::default(); N], count: 0 }
    }

    /// Copies of so many bytes from or to these addresses, in this order, on whose other sides are addresses that the kernel is told. `None`
    /// where they are more than `N`, or further apart than 32 bits reach.
    pub(crate) fn told(sides: &[(u64, u32)]) -> Option<Entries<N>> {
        let mut entries = Entries::new();
        let base = sides.first().map_or(0, |(first, _)| first.wrapping_sub(1 << 31));
        (entries.from, entries.to) = (base, base);
        sides.iter().all(|&(side, len)| entries.append(side, side, len)).then_some(entries)
    }

    /// Adds a copy, as part of the one before where it continues that. Returns false where it has to go with another launch.
    #[inline]
    pub(crate) fn push(&mut self, from: u64, to: u64, len: u32) -> bool {
        let Some(last) = self.count.checked_sub(1) else {
            // In the middle of what 32 bits reach.
            (self.from, self.to) = (from.wrapping_sub(1 << 31), to.wrapping_sub(1 << 31));
            return self.append(from, to, len);
        };
        let last = &mut self.all[last as usize];
        let ends = |base: u64, at: u32| base.wrapping_add(u64::from(at) + u64::from(last.len));
        if (ends(self.from, last.from), ends(self.to, last.to)) == (from, to)
            && let Some(sum) = last.len.checked_add(len).filter(|sum| *sum <= MERGED)
        {
            last.len = sum;
            return true;
        }
        self.append(from, to, len)
    }

    fn append(&mut self, from: u64, to: u64, len: u32) -> bool {
        let distance = |base: u64, address: u64| u32::try_from(address.wrapping_sub(base)).ok();
        let (Some(from), Some(to)) = (distance(self.from, from), distance(self.to, to)) else { return false };
        let Some(place) = self.all.get_mut(self.count as usize) else { return false };
        *place = Entry { from, to, len };
        self.count += 1;
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A block for each part of the longest copy, and that for each copy.
    pub(crate) fn launch(&self) -> Launch {
        let longest = self.all[..self.count as usize].iter().map(|entry| entry.len).max().unwrap_or(0);
        let grid = [longest.div_ceil(BLOCK_BYTES).max(1), self.count, 1];
        Launch { grid, block: [BLOCK_THREADS, 1, 1], shared_bytes: 0 }
    }
}

/// The kernel on a device, for more and more pieces.
#[derive(Debug)]
pub(crate) struct Carry {
    pub(crate) few: Function,
    pub(crate) some: Function,
    /// Without it there are more launches.
    pub(crate) many: Option<Function>,
    /// For a few whose sources, or targets, are read from memory.
    pub(crate) from_told: Function,
    pub(crate) to_told: Function,
}

impl Carry {
    pub(crate) fn load(context: &Context) -> Result<Carry, GpuError> {
        let load = |text: String| Module::from_ptx(context, &text)?.function("carry");
        let find = |version, bytes| load(ptx(version, bytes, None));
        let told = |side| load(ptx("7.0", Entries::<FEW>::BYTES, Some(side)));
        Ok(Carry {
            few: find("7.0", Entries::<FEW>::BYTES)?,
            some: find("7.0", Entries::<SOME>::BYTES)?,
            many: find("8.1", Entries::<MANY>::BYTES).ok(),
            from_told: told("%from")?,
            to_told: told("%to")?,
        })
    }
}

/// The kernel for so many bytes of entries; `told` is the side, `%from` or `%to`, whose addresses it reads from memory.
fn ptx(version: &str, bytes: usize, told: Option<&str>) -> String {
    let (parameter, read) = if told.is_some() { (",\n    .param .u64 told", TOLD) } else { ("", "") };
    let text = PTX.replace(",TOLD", parameter).replace("READ\n", read).replace("SIDE", told.unwrap_or_default());
    text.replace("VERSION", version).replace("BYTES", &bytes.to_string())
}

/// The address of copy `y` is that word of what `told` is the address of. Told before the launch, it is read as the bytes themselves are: a load
/// that is ordered goes over the bus once for each thread, which takes 7 us more.
const TOLD: &str = r"
    ld.param.u64 %src, [told];
    mul.wide.u32 %offset, %index, 8;
    add.s64 %src, %src, %offset;
    ld.global.u64 SIDE, [%src];
";

/// `carry(entries)`, or `carry(entries, told)`: block `(x, y)` carries the 8,192 bytes from `8192 x` on of copy `y`, as far as that goes. Where both of its
/// addresses are multiples of 16, each thread has two loads of 16 bytes under way at once, which is what hides the bus. Where
/// they are multiples of 4, words go one after the other, and else bytes, as do those behind the last whole one.
const PTX: &str = r"
.version VERSION
.target sm_70
.address_size 64

.visible .entry carry(
    .param .align 8 .b8 entries[BYTES],TOLD
)
{
    .reg .pred %p, %first, %second;
    .reg .b16 %byte;
    .reg .b32 %index, %far_from, %far_to, %len, %start, %end, %thread, %near, %far, %past, %tail, %mask;
    .reg .b32 %a0, %a1, %a2, %a3, %b0, %b1, %b2, %b3;
    .reg .b64 %entry, %offset, %from, %to, %both, %src, %dst, %src2, %dst2;

    mov.u32 %index, %ctaid.y;
    mul.wide.u32 %offset, %index, 12;
    mov.b64 %entry, entries;
    add.s64 %entry, %entry, %offset;
    ld.param.u32 %far_from, [%entry+16];
    ld.param.u32 %far_to, [%entry+20];
    ld.param.u32 %len, [%entry+24];
    ld.param.u64 %from, [entries];
    ld.param.u64 %to, [entries+8];
    cvt.u64.u32 %offset, %far_from;
    add.s64 %from, %from, %offset;
    cvt.u64.u32 %offset, %far_to;
    add.s64 %to, %to, %offset;
READ
    mov.u32 %start, %ctaid.x;
    shl.b32 %start, %start, 13;
    setp.ge.u32 %p, %start, %len;
    @%p bra done;
    sub.u32 %end, %len, %start;
    min.u32 %end, %end, 8192;
    cvt.u64.u32 %offset, %start;
    add.s64 %from, %from, %offset;
    add.s64 %to, %to, %offset;
    mov.u32 %thread, %tid.x;

    or.b64 %both, %from, %to;
    cvt.u32.u64 %mask, %both;
    and.b32 %past, %mask, 3;
    setp.ne.s32 %p, %past, 0;
    @%p bra each;
    and.b32 %past, %mask, 15;
    setp.ne.s32 %p, %past, 0;
    @%p bra words;

    mov.u32 %mask, 15;
    shl.b32 %near, %thread, 4;
    add.u32 %far, %near, 4096;
    add.u32 %past, %near, 16;
    setp.le.u32 %first, %past, %end;
    add.u32 %past, %far, 16;
    setp.le.u32 %second, %past, %end;
    cvt.u64.u32 %offset, %near;
    add.s64 %src, %from, %offset;
    add.s64 %dst, %to, %offset;
    add.s64 %src2, %src, 4096;
    add.s64 %dst2, %dst, 4096;
    @%first ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%src];
    @%second ld.global.v4.u32 {%b0, %b1, %b2, %b3}, [%src2];
    @%first st.global.v4.u32 [%dst], {%a0, %a1, %a2, %a3};
    @%second st.global.v4.u32 [%dst2], {%b0, %b1, %b2, %b3};

rest:
    and.b32 %tail, %end, %mask;
    setp.ge.u32 %p, %thread, %tail;
    @%p bra done;
    sub.u32 %near, %end, %tail;
    add.u32 %near, %near, %thread;
    cvt.u64.u32 %offset, %near;
    add.s64 %src, %from, %offset;
    add.s64 %dst, %to, %offset;
    ld.global.u8 %byte, [%src];
    st.global.u8 [%dst], %byte;
    bra done;

words:
    mov.u32 %mask, 3;
    shl.b32 %near, %thread, 2;
word:
    add.u32 %past, %near, 4;
    setp.gt.u32 %p, %past, %end;
    @%p bra rest;
    cvt.u64.u32 %offset, %near;
    add.s64 %src, %from, %offset;
    add.s64 %dst, %to, %offset;
    ld.global.u32 %a0, [%src];
    st.global.u32 [%dst], %a0;
    add.u32 %near, %near, 1024;
    bra word;

each:
    setp.ge.u32 %p, %thread, %end;
    @%p bra done;
    cvt.u64.u32 %offset, %thread;
    add.s64 %src, %from, %offset;
    add.s64 %dst, %to, %offset;
    ld.global.u8 %byte, [%src];
    st.global.u8 [%dst], %byte;
    add.u32 %thread, %thread, 256;
    bra each;

done:
    ret;
}
";

#[cfg(test)]
mod tests {
    use super::*;

    fn copies<const N: usize>(entries: &Entries<N>) -> Vec<(u64, u64, u32)> {
        let Entries { from, to, all, count } = entries;
        let copy = |e: &Entry| (from.wrapping_add(e.from.into()), to.wrapping_add(e.to.into()), e.len);
        all[..*count as usize].iter().map(copy).collect()
    }

    #[test]
    fn neighbours_on_both_sides_become_one_copy() {
        let mut entries = Entries::<FEW>::new();
        assert!(entries.is_empty());
        assert!(entries.push(1000, 5000, 100));
        assert!(entries.push(1100, 5100, 50));
        // Only one side continues.
        assert!(entries.push(1150, 9000, 10));
        assert!(entries.push(3000, 9010, 20_000));
        // Before the first.
        assert!(entries.push(500, 100, 1));
        assert_eq!(copies(&entries), [(1000, 5000, 150), (1150, 9000, 10), (3000, 9010, 20_000), (500, 100, 1)]);
        assert_eq!(entries.launch().grid, [3, 4, 1]);
    }

    #[test]
    fn a_launch_takes_what_its_parameters_hold() {
        let mut entries = Entries::<FEW>::new();
        let taken = (0..FEW as u64 + 1).take_while(|n| entries.push(n * 100, n * 200, 10)).count();
        assert_eq!(taken, FEW);
        // What continues the last one still goes in, unless it gets too long to count.
        let last = (FEW as u64 - 1) * 100;
        assert!(entries.push(last + 10, 2 * last + 10, 10));
        assert!(!entries.push(last + 20, 2 * last + 20, u32::MAX));
        // Nor what is further away than 32 bits tell, on either side.
        let mut entries = Entries::<FEW>::new();
        let (from, to) = (1 << 40, 1 << 45);
        assert!(entries.push(from, to, 1));
        assert!(!entries.push(from + (1 << 31), to, 1) && !entries.push(from, to - (1 << 31) - 1, 1));
        assert!(entries.push(from + (1 << 31) - 1, to - (1 << 31), 1));
        assert_eq!(copies(&entries).last(), Some(&(from + (1 << 31) - 1, to - (1 << 31), 1)));
    }

    #[test]
    fn parameters_are_where_the_kernel_looks_for_them() {
        assert_eq!(std::mem::offset_of!(Entries<FEW>, all), 16);
        assert_eq!((size_of::<Entry>(), Entries::<FEW>::BYTES), (12, 208));
        // What it declares is read by the driver.
        const { assert!(Entries::<MANY>::BYTES <= size_of::<Entries<MANY>>()) };
        const { assert!(Entries::<MANY>::BYTES <= 32_764 && Entries::<SOME>::BYTES <= 4_096) };
        let text = ptx("8.1", Entries::<MANY>::BYTES, None);
        assert!(text.starts_with("\n.version 8.1\n") && text.contains("entries[24592]\n)"));
        let text = ptx("7.0", Entries::<FEW>::BYTES, Some("%to"));
        assert!(text.contains("entries[208],\n    .param .u64 told\n)") && text.contains("u64 %to, [%src];"));
        assert!(!["VERSION", "BYTES", "TOLD", "READ", "SIDE"].iter().any(|mark| text.contains(mark)));
    }
}

//! What the porter does on the device.

use super::{DONE_AT, ORDERS, OUT, SMALL, STOP, THREADS, WORKERS};

/// The kernel, for the driver to compile.
pub(super) fn ptx() -> String {
    let numbers = [
        ("DONE_AT", DONE_AT),
        ("PLACES", ORDERS - 1),
        ("WORKERS", WORKERS.into()),
        ("STRIDE", u64::from(THREADS) * 16),
        ("SMALL", SMALL.into()),
        ("STOP", STOP),
        ("OUT", OUT),
    ];
    numbers.iter().fold(PTX.to_owned(), |text, (name, number)| text.replace(name, &number.to_string()))
}

/// `porter(ring, table, relay, given, epoch, limit)`: the first block looks for orders from the first one after `given` on, eight at a time.
/// A small one that comes alone it carries out itself, others it hands on by way of `relay`, where block `b + 1` waits for those whose
/// number is `b` modulo the number of workers. It ends when it is told to, or when no order comes for `limit` cycles, and has the workers end by
/// writing `epoch`, which is another one in each launch.
///
/// When all threads of a block have stored their bytes the first says so in the order's place in `done`. Both ends of an order are as far
/// from an address of 16 bytes, so whole vectors of 16 bytes are carried, four by each thread at once, where they begin at one, else words of
/// four bytes or bytes.
const PTX: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry porter(
    .param .u64 p_ring,
    .param .u64 p_table,
    .param .u64 p_relay,
    .param .u32 p_given,
    .param .u32 p_epoch,
    .param .u64 p_limit
)
{
    .shared .align 16 .b64 told[2];
    .shared .u32 goes;
    .reg .pred %p, %first, %works, %other, %looks, %valid, %again, %p0, %p1, %p2, %p3;
    .reg .b16 %byte;
    .reg .b32 %number, %mine, %place, %thread, %block, %epoch, %word, %len, %pool, %at, %whole, %x, %votes, %count;
    .reg .b32 %a0, %a1, %a2, %a3, %b0, %b1, %b2, %b3, %c0, %c1, %c2, %c3, %d0, %d1, %d2, %d3;
    .reg .b64 %ring, %table, %relay, %done, %limit, %order, %now, %since, %one, %two, %from, %to, %swap, %offset, %y;

    ld.param.u64 %ring, [p_ring];
    ld.param.u64 %table, [p_table];
    ld.param.u64 %relay, [p_relay];
    ld.param.u32 %number, [p_given];
    ld.param.u32 %epoch, [p_epoch];
    ld.param.u64 %limit, [p_limit];
    add.s64 %done, %ring, DONE_AT;
    mov.u32 %thread, %tid.x;
    mov.u32 %block, %ctaid.x;
    setp.eq.u32 %first, %thread, 0;
    setp.ge.u32 %other, %thread, 32;
    setp.lt.u32 %looks, %thread, 8;
    setp.ne.u32 %works, %block, 0;
    add.u32 %number, %number, 1;
    @%works bra begin;
    mov.u64 %since, %clock64;

next:
    @%other bra meet;
look:
    add.u32 %mine, %number, %thread;
    and.b32 %place, %mine, PLACES;
    mul.wide.u32 %offset, %place, 16;
    add.s64 %order, %ring, %offset;
    mov.u64 %one, 0;
    mov.u64 %two, 0;
    @%looks ld.volatile.global.v2.u64 {%one, %two}, [%order];
    shr.u64 %y, %two, 32;
    cvt.u32.u64 %word, %y;
    setp.eq.and.u32 %valid, %word, %mine, %looks;
    shr.u64 %y, %one, 48;
    cvt.u32.u64 %word, %y;
    and.b32 %x, %mine, 65535;
    setp.eq.and.u32 %valid, %word, %x, %valid;
    // An order to stop comes to be the first of a look.
    cvt.u32.u64 %word, %two;
    and.b32 %word, %word, STOP;
    setp.eq.or.u32 %p, %word, 0, %first;
    and.pred %valid, %valid, %p;
    // How many there are in turn.
    vote.sync.ballot.b32 %votes, %valid, 0xffffffff;
    not.b32 %x, %votes;
    brev.b32 %x, %x;
    clz.b32 %count, %x;
    setp.eq.u32 %p, %count, 0;
    @%p bra none;
    mov.u64 %since, %clock64;
    cvt.u32.u64 %word, %two;
    shfl.sync.idx.b32 %x, %word, 0, 31, 0xffffffff;
    and.b32 %word, %x, STOP;
    setp.ne.u32 %p, %word, 0;
    @%p bra told_to;
    and.b32 %len, %x, 65535;
    setp.eq.u32 %p, %count, 1;
    setp.le.and.u32 %p, %len, SMALL, %p;
    @%p bra itself;
    setp.lt.u32 %p, %thread, %count;
    add.s64 %y, %relay, %offset;
    @%p st.volatile.global.v2.u64 [%y+128], {%one, %two};
    add.u32 %number, %number, %count;
    bra look;
none:
    mov.u64 %now, %clock64;
    sub.u64 %y, %now, %since;
    setp.le.u64 %p, %y, %limit;
    vote.sync.all.pred %p, %p, 0xffffffff;
    @%p bra look;
    bra over;
itself:
    @!%first bra meet;
    st.shared.u64 [told], %one;
    st.shared.u64 [told+8], %two;
    mov.u32 %word, 1;
    st.shared.u32 [goes], %word;
    // The worker whose turn it is passes it over.
    add.s64 %y, %relay, %offset;
    and.b64 %two, %two, -65536;
    st.volatile.global.v2.u64 [%y+128], {%one, %two};
    bra meet;
told_to:
    bar.warp.sync 0xffffffff;
    @!%first bra meet;
    mul.wide.u32 %offset, %place, 4;
    add.s64 %y, %done, %offset;
    st.volatile.global.u32 [%y], %number;
    bra ends;
over:
    bar.warp.sync 0xffffffff;
    @!%first bra meet;
ends:
    membar.gl;
    st.volatile.global.u32 [%relay], %epoch;
    mov.u32 %word, 0;
    st.shared.u32 [goes], %word;
    bra meet;

begin:
    // The first number after `given` that is this worker's.
    rem.u32 %x, %number, WORKERS;
    sub.u32 %x, %block, %x;
    add.u32 %x, %x, WORKERS;
    sub.u32 %x, %x, 1;
    rem.u32 %x, %x, WORKERS;
    add.u32 %number, %number, %x;
turn:
    @!%first bra meet;
pass:
    and.b32 %place, %number, PLACES;
    mul.wide.u32 %offset, %place, 16;
    add.s64 %order, %relay, %offset;
    setp.ne.u32 %again, %number, %number;
wait:
    ld.volatile.global.v2.u64 {%one, %two}, [%order+128];
    shr.u64 %y, %two, 32;
    cvt.u32.u64 %word, %y;
    setp.eq.u32 %valid, %word, %number;
    shr.u64 %y, %one, 48;
    cvt.u32.u64 %word, %y;
    and.b32 %x, %number, 65535;
    setp.eq.and.u32 %valid, %word, %x, %valid;
    @%valid bra take;
    // A later order in its place says that the first block has carried it out before this one came to look.
    shr.u64 %y, %two, 32;
    cvt.u32.u64 %word, %y;
    sub.u32 %x, %word, %number;
    setp.gt.s32 %p, %x, 0;
    setp.ne.and.u32 %p, %word, 0, %p;
    @%p bra past;
    // Once it is the end, what was handed on before is seen by the next look.
    @%again bra leave;
    ld.volatile.global.u32 %word, [%relay];
    setp.eq.u32 %again, %word, %epoch;
    @%again membar.gl;
    bra wait;
leave:
    mov.u32 %word, 0;
    st.shared.u32 [goes], %word;
    bra meet;
take:
    cvt.u32.u64 %word, %two;
    and.b32 %len, %word, 65535;
    setp.eq.u32 %p, %len, 0;
    @!%p bra carry;
past:
    add.u32 %number, %number, WORKERS;
    bra pass;
carry:
    membar.gl;
    st.shared.u64 [told], %one;
    st.shared.u64 [told+8], %two;
    mov.u32 %word, 1;
    st.shared.u32 [goes], %word;

meet:
    barrier.sync 0;
    ld.shared.u32 %word, [goes];
    setp.eq.u32 %p, %word, 0;
    @%p bra end;
    ld.shared.u64 %one, [told];
    ld.shared.u64 %two, [told+8];

    cvt.u32.u64 %word, %two;
    and.b32 %len, %word, 65535;
    shr.u32 %pool, %word, 16;
    and.b32 %pool, %pool, 255;
    mul.wide.u32 %offset, %pool, 16;
    add.s64 %y, %table, %offset;
    ld.global.v2.u64 {%from, %to}, [%y];
    and.b32 %x, %word, OUT;
    setp.eq.u32 %p, %x, 0;
    @%p bra inward;
    mov.u64 %swap, %from;
    mov.u64 %from, %to;
    mov.u64 %to, %swap;
inward:
    and.b64 %offset, %one, 281474976710655;
    add.s64 %from, %from, %offset;
    add.s64 %to, %to, %offset;

    cvt.u32.u64 %x, %offset;
    and.b32 %word, %x, 15;
    setp.ne.u32 %p, %word, 0;
    @%p bra unaligned;
    and.b32 %whole, %len, -16;
    shl.b32 %at, %thread, 4;
    cvt.u64.u32 %offset, %at;
    add.s64 %one, %from, %offset;
    add.s64 %two, %to, %offset;
    setp.lt.u32 %p0, %at, %whole;
    add.u32 %at, %at, STRIDE;
    setp.lt.u32 %p1, %at, %whole;
    add.u32 %at, %at, STRIDE;
    setp.lt.u32 %p2, %at, %whole;
    add.u32 %at, %at, STRIDE;
    setp.lt.u32 %p3, %at, %whole;
    add.s64 %swap, %one, STRIDE;
    add.s64 %y, %swap, STRIDE;
    add.s64 %offset, %y, STRIDE;
    @%p0 ld.volatile.global.v4.u32 {%a0, %a1, %a2, %a3}, [%one];
    @%p1 ld.volatile.global.v4.u32 {%b0, %b1, %b2, %b3}, [%swap];
    @%p2 ld.volatile.global.v4.u32 {%c0, %c1, %c2, %c3}, [%y];
    @%p3 ld.volatile.global.v4.u32 {%d0, %d1, %d2, %d3}, [%offset];
    add.s64 %swap, %two, STRIDE;
    add.s64 %y, %swap, STRIDE;
    add.s64 %offset, %y, STRIDE;
    @%p0 st.global.v4.u32 [%two], {%a0, %a1, %a2, %a3};
    @%p1 st.global.v4.u32 [%swap], {%b0, %b1, %b2, %b3};
    @%p2 st.global.v4.u32 [%y], {%c0, %c1, %c2, %c3};
    @%p3 st.global.v4.u32 [%offset], {%d0, %d1, %d2, %d3};
    add.u32 %at, %whole, %thread;
    setp.ge.u32 %p, %at, %len;
    @%p bra stored;
    cvt.u64.u32 %offset, %at;
    add.s64 %one, %from, %offset;
    add.s64 %two, %to, %offset;
    ld.volatile.global.u8 %byte, [%one];
    st.global.u8 [%two], %byte;
    bra stored;

unaligned:
    and.b32 %word, %x, 3;
    mov.u32 %at, %thread;
    setp.ne.u32 %p, %word, 0;
    @%p bra each;
    and.b32 %whole, %len, -4;
    shl.b32 %at, %thread, 2;
words:
    setp.ge.u32 %p, %at, %whole;
    @%p bra rest;
    cvt.u64.u32 %offset, %at;
    add.s64 %one, %from, %offset;
    add.s64 %two, %to, %offset;
    ld.volatile.global.u32 %word, [%one];
    st.global.u32 [%two], %word;
    add.u32 %at, %at, 2048;
    bra words;
rest:
    add.u32 %at, %whole, %thread;
each:
    setp.ge.u32 %p, %at, %len;
    @%p bra stored;
    cvt.u64.u32 %offset, %at;
    add.s64 %one, %from, %offset;
    add.s64 %two, %to, %offset;
    ld.volatile.global.u8 %byte, [%one];
    st.global.u8 [%two], %byte;
    add.u32 %at, %at, 512;
    bra each;

stored:
    barrier.sync 0;
    @!%first bra after;
    membar.sys;
    mul.wide.u32 %offset, %place, 4;
    add.s64 %y, %done, %offset;
    st.volatile.global.u32 [%y], %number;
after:
    @%works bra follow;
    add.u32 %number, %number, 1;
    mov.u64 %since, %clock64;
    bra next;
follow:
    add.u32 %number, %number, WORKERS;
    bra turn;

end:
    ret;
}
";

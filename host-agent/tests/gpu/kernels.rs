//! Kernels to serve, in PTX.

/// `add(a, b, c, n)`: `c[i] = a[i] + b[i]` in single precision, for `n` numbers.
pub(crate) const ADD: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry add(
    .param .u64 add_a,
    .param .u64 add_b,
    .param .u64 add_c,
    .param .u32 add_n
)
{
    .reg .pred %past;
    .reg .b32 %n, %block, %threads, %index;
    .reg .f32 %x, %y;
    .reg .b64 %a, %b, %c, %offset;

    ld.param.u64 %a, [add_a];
    ld.param.u64 %b, [add_b];
    ld.param.u64 %c, [add_c];
    ld.param.u32 %n, [add_n];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %index, %tid.x;
    mad.lo.u32 %index, %block, %threads, %index;
    setp.ge.u32 %past, %index, %n;
    @%past bra done;
    mul.wide.u32 %offset, %index, 4;
    add.s64 %a, %a, %offset;
    add.s64 %b, %b, %offset;
    add.s64 %c, %c, %offset;
    ld.global.f32 %x, [%a];
    ld.global.f32 %y, [%b];
    add.f32 %x, %x, %y;
    st.global.f32 [%c], %x;
done:
    ret;
}
";

/// `pause(in, out)`: waits for as many microseconds as the number that it is given says, and answers with that number; with a negative
/// one it writes where there is no memory.
pub(crate) const PAUSE: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry pause(
    .param .u64 pause_in,
    .param .u64 pause_out
)
{
    .reg .pred %again, %fault;
    .reg .b32 %micros;
    .reg .b64 %in, %out, %now, %end, %nanos;

    ld.param.u64 %in, [pause_in];
    ld.param.u64 %out, [pause_out];
    ld.global.u32 %micros, [%in];
    setp.lt.s32 %fault, %micros, 0;
    @%fault mov.u64 %out, 16;
    mul.wide.u32 %nanos, %micros, 1000;
    @%fault mov.u64 %nanos, 0;
    mov.u64 %end, %globaltimer;
    add.u64 %end, %end, %nanos;
wait:
    mov.u64 %now, %globaltimer;
    setp.lt.u64 %again, %now, %end;
    @%again bra wait;
    st.global.u32 [%out], %micros;
    ret;
}
";

/// `endless(in, out)`: never ends where it is given the number 7; else it answers with what it was given.
pub(crate) const ENDLESS: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry endless(
    .param .u64 endless_in,
    .param .u64 endless_out
)
{
    .reg .pred %again;
    .reg .b32 %word;
    .reg .b64 %in, %out;

    ld.param.u64 %in, [endless_in];
    ld.param.u64 %out, [endless_out];
    ld.global.u32 %word, [%in];
wait:
    setp.eq.u32 %again, %word, 7;
    st.volatile.global.u32 [%out], %word;
    @%again bra wait;
    ret;
}
";

/// `faults(in, out)`: writes where there is no memory, whatever it is given.
pub(crate) const FAULTS: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry faults(
    .param .u64 faults_in,
    .param .u64 faults_out
)
{
    .reg .b32 %word;
    .reg .b64 %out;

    mov.u64 %out, 16;
    mov.u32 %word, 1;
    st.global.u32 [%out], %word;
    ret;
}
";

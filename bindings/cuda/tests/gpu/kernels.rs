//! Kernels in PTX, written by hand.

/// `out[i] = a[i] + b[i]` for `count` floats: `vecadd(a, b, out, count)`. And `poke(address)`, which writes a word.
pub(crate) const PTX: &str = r"
.version 7.0
.target sm_75
.address_size 64

.visible .entry vecadd(
    .param .u64 vecadd_a,
    .param .u64 vecadd_b,
    .param .u64 vecadd_out,
    .param .u32 vecadd_count
)
{
    .reg .pred %past;
    .reg .f32 %x, %y, %sum;
    .reg .b32 %count, %block, %threads, %thread, %index;
    .reg .b64 %a, %b, %out, %offset;

    ld.param.u64 %a, [vecadd_a];
    ld.param.u64 %b, [vecadd_b];
    ld.param.u64 %out, [vecadd_out];
    ld.param.u32 %count, [vecadd_count];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.s32 %index, %block, %threads, %thread;
    setp.ge.u32 %past, %index, %count;
    @%past bra done;
    mul.wide.u32 %offset, %index, 4;
    add.s64 %a, %a, %offset;
    add.s64 %b, %b, %offset;
    add.s64 %out, %out, %offset;
    ld.global.f32 %x, [%a];
    ld.global.f32 %y, [%b];
    add.f32 %sum, %x, %y;
    st.global.f32 [%out], %sum;
done:
    ret;
}

.visible .entry poke(
    .param .u64 poke_address
)
{
    .reg .b32 %value;
    .reg .b64 %address;

    ld.param.u64 %address, [poke_address];
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
";

//! What tests of wrong calls have in common.
#![allow(dead_code, reason = "each test uses a part")]

use doca_sys::*;

use crate::common::{LOCAL, doca};

/// Calls functions, and compares what each answers.
macro_rules! answers {
    ($($code:ident: $function:ident($($argument:expr),* $(,)?) $(, $why:literal)?;)*) => {$(
        let answered = $crate::common::name($crate::common::doca!($function($($argument),*)));
        assert_eq!(answered, concat!("DOCA_", stringify!($code)), "{} {}", stringify!($function), concat!($($why)?));
    )*};
}
pub(crate) use answers;

/// What is attached where nothing needs to be.
pub(crate) const NOTHING: doca_data = doca_data { u64_: 0 };

pub(crate) fn place<T>() -> *mut T {
    // As much as any answer takes; nothing looks at it.
    vec![0_u64; 64].leak().as_mut_ptr().cast()
}

pub(crate) fn info(device: *mut doca_dev) -> *mut doca_devinfo {
    doca!(doca_dev_as_devinfo(device))
}

/// 64 bytes of data and no more room, on a device.
pub(crate) fn buf_of(device: *mut doca_dev) -> *mut doca_buf {
    buf_with(device, LOCAL)
}

pub(crate) fn read_only(device: *mut doca_dev) -> *mut doca_buf {
    buf_with(device, 0)
}

fn buf_with(device: *mut doca_dev, access: u32) -> *mut doca_buf {
    let memory = vec![0; 64].leak();
    let address = memory.as_ptr().expose_provenance();
    crate::common::buf(crate::common::inventory(1), crate::common::mmap(device, memory, access), address, 64, 64)
}

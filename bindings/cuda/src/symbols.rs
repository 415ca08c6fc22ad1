//! What must be in the driver's library. The bindings panic where a function is missing, so all are looked for first.

use std::ffi::c_void;

use cudarc::driver::sys;

/// Every function that this crate calls, but for those that it looks up itself.
const NEEDED: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFlushGPUDirectRDMAWrites",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGetProcAddress_v2",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphExecUpdate_v2",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemCreate",
    "cuMemExportToShareableHandle",
    "cuMemGetAddressRange_v2",
    "cuMemGetAllocationGranularity",
    "cuMemGetHandleForAddressRange",
    "cuMemGetInfo_v2",
    "cuMemHostGetDevicePointer_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemImportFromShareableHandle",
    "cuMemMap",
    "cuMemRelease",
    "cuMemRetainAllocationHandle",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuPointerGetAttribute",
    "cuStreamBeginCapture_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetPriority",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamWaitValue32_v2",
    "cuStreamWriteValue32_v2",
];

/// The first function that the library lacks. The library must be there.
pub(crate) fn missing() -> Option<&'static str> {
    NEEDED.iter().copied().find(|name| !has(name))
}

/// Whether the library has a function. The library must be there.
pub(crate) fn has(name: &str) -> bool {
    // SAFETY: the caller has made sure that the library can be loaded; its initialisers are the driver's own.
    let library = unsafe { sys::culib() };
    // SAFETY: only whether the symbol is there is asked; it is not used through this type.
    unsafe { library.get::<*const c_void>(name.as_bytes()) }.is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::NEEDED;

    /// All of this crate's source but this file.
    const SOURCE: &str = concat!(
        include_str!("context.rs"),
        include_str!("copy.rs"),
        include_str!("device.rs"),
        include_str!("driver.rs"),
        include_str!("error.rs"),
        include_str!("event.rs"),
        include_str!("found.rs"),
        include_str!("graph.rs"),
        include_str!("host.rs"),
        include_str!("launch.rs"),
        include_str!("memory.rs"),
        include_str!("memory_ops.rs"),
        include_str!("module.rs"),
        include_str!("pinned.rs"),
        include_str!("range.rs"),
        include_str!("stream.rs"),
    );

    #[test]
    fn what_is_called_is_looked_for_first() {
        let called: BTreeSet<&str> = SOURCE
            .split("sys::")
            .skip(1)
            .map(|rest| {
                rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap_or_default()
            })
            .filter(|name| name.starts_with("cu") && *name != "culib")
            .collect();
        assert_eq!(called, NEEDED.iter().copied().collect());
    }

    #[test]
    fn every_module_of_the_crate_is_searched() {
        let modules = include_str!("lib.rs").lines().filter(|line| line.starts_with("mod ")).count();
        let searched = include_str!("symbols.rs").matches("\n        include_str!(").count();
        assert_eq!(searched + 1, modules);
    }
}

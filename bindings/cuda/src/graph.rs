//! Work that is recorded once and submitted as a whole again and again.

use std::fmt;
use std::ptr;

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUresult};

use crate::context::Context;
use crate::error::Error;
use crate::stream::Stream;

/// Work as it was recorded on a stream. To be used by one thread at a time, which the driver asks for.
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<splitrpc_cuda::Graph>();
/// ```
pub struct Graph {
    context: Context,
    raw: CUgraph,
}

// SAFETY: graphs are bound to no thread; that two threads do not use one at a time, the lack of `Sync` sees to.
unsafe impl Send for Graph {}

impl Stream {
    /// Records what `submit` submits to the stream, which is not carried out. Other streams that wait for an event
    /// recorded in it are recorded too, and must be joined by an event again. Nothing may wait for the stream
    /// meanwhile; other threads are not affected.
    ///
    /// # Errors
    /// That of `submit`; the driver's, for instance when something was submitted that cannot be recorded. The stream is
    /// usable again in any case.
    pub fn capture(&mut self, submit: impl FnOnce(&Stream) -> Result<(), Error>) -> Result<Graph, Error> {
        self.context().make_current()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live, and recording does not carry anything out.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.raw(), mode) };
        self.context().check(result, "cannot begin to record a graph")?;
        let recording = Recording { stream: self };
        let submitted = submit(recording.stream);
        let graph = recording.end();
        submitted.and(graph)
    }

    /// Submits all of a graph. It begins when all that was submitted before is done, and one launch of an executable
    /// begins when its last has ended, whatever the streams.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; the driver's, also those of earlier work.
    ///
    /// # Safety
    /// What is promised for each piece of work when it is submitted holds for all pieces of the graph with the values
    /// that were recorded: memory, modules and registrations that it names are still there, and stay until the stream
    /// has passed.
    pub unsafe fn launch_graph(&self, executable: &Executable) -> Result<(), Error> {
        const WHAT: &str = "cannot launch a graph";
        self.same_device(&executable.context, WHAT)?;
        self.context().make_current()?;
        // SAFETY: the executable is live and used by one thread at a time; the caller promises what its work needs.
        let result = unsafe { sys::cuGraphLaunch(executable.raw, self.raw()) };
        self.context().check(result, WHAT)
    }
}

/// A stream that records. Ends the recording even when a panic comes in between.
struct Recording<'a> {
    stream: &'a Stream,
}

impl Recording<'_> {
    fn end(self) -> Result<Graph, Error> {
        let stream = self.stream;
        // What the drop would do is done here, with the result wanted.
        std::mem::forget(self);
        end_capture(stream)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let _ = end_capture(self.stream);
    }
}

fn end_capture(stream: &Stream) -> Result<Graph, Error> {
    let context = stream.context();
    context.make_current()?;
    let mut raw = ptr::null_mut();
    // SAFETY: the stream is live, and the place for the graph outlives the call.
    let result = unsafe { sys::cuStreamEndCapture(stream.raw(), &raw mut raw) };
    // Owned first, so that it goes should there be an error too.
    let graph = Graph { context: context.clone(), raw };
    context.check(result, "cannot record a graph")?;
    Ok(graph)
}

impl Graph {
    /// Pieces of work in it.
    ///
    /// # Errors
    /// The driver's.
    pub fn nodes(&self) -> Result<usize, Error> {
        self.context.make_current()?;
        let mut count = 0;
        // SAFETY: without a place for the nodes only their count is written, to a place that outlives the call.
        let result = unsafe { sys::cuGraphGetNodes(self.raw, ptr::null_mut(), &raw mut count) };
        self.context.check(result, "cannot count a graph's nodes")?;
        Ok(count)
    }

    /// Makes it ready to be launched, which takes a while. The graph is not needed for that any longer.
    ///
    /// # Errors
    /// The driver's.
    pub fn instantiate(&self) -> Result<Executable, Error> {
        self.context.make_current()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the graph is live and used by one thread at a time, and the place for the executable outlives the
        // call.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut raw, self.raw, 0) };
        self.context.check(result, "cannot instantiate a graph")?;
        Ok(Executable { context: self.context.clone(), raw })
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.raw.is_null() && self.context.make_current_to_free() {
            // SAFETY: the graph is destroyed once; executables made from it do not need it.
            let _ = unsafe { sys::cuGraphDestroy(self.raw) };
        }
    }
}

/// A graph that can be launched: see [`Stream::launch_graph`]. To be used by one thread at a time, which the driver
/// asks for.
pub struct Executable {
    context: Context,
    raw: CUgraphExec,
}

// SAFETY: executables are bound to no thread; that two threads do not use one at a time, the lack of `Sync` sees to.
unsafe impl Send for Executable {}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The next launch does what the new graph says.
    Done,
    /// The graphs differ by more than values, so nothing has changed; the new one has to be instantiated.
    Differs,
}

impl Executable {
    /// Takes over the values (addresses, arguments, sizes) of a graph of the same shape. Much cheaper than to
    /// instantiate it. Launches that were submitted before are not affected.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; the driver's.
    pub fn update(&mut self, graph: &Graph) -> Result<Update, Error> {
        const WHAT: &str = "cannot update a graph";
        if !self.context.is_same(&graph.context) {
            return Err(Error::OtherDevice { what: WHAT });
        }
        self.context.make_current()?;
        let mut info = sys::CUgraphExecUpdateResultInfo {
            result: sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_SUCCESS,
            errorNode: ptr::null_mut(),
            errorFromNode: ptr::null_mut(),
        };
        // SAFETY: both are live and used by one thread at a time, and the place for the answer outlives the call.
        let result = unsafe { sys::cuGraphExecUpdate_v2(self.raw, graph.raw, &raw mut info) };
        if result == CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE {
            return Ok(Update::Differs);
        }
        self.context.check(result, WHAT)?;
        Ok(Update::Done)
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if self.context.make_current_to_free() {
            // SAFETY: the executable is destroyed once; launches that have not ended are carried out.
            let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
        }
    }
}

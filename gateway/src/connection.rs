//! One client connection: which protocol it speaks, and when it has been idle, slow or stuck for too long.
//!
//! hyper's own header timeout is one timer for idle and slow connections alike, set anew for every request. Here the I/O notes what
//! happened, and one lazy timer for a connection looks at the notes.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::rt::ReadBufCursor;
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};

use crate::{Limits, body::Body};

/// Milliseconds since a worker's start, as of its last tick: cheap, and exact to [`crate::worker::TICK`].
#[derive(Debug, Default)]
pub(crate) struct CoarseClock(AtomicU64);

impl CoarseClock {
    pub(crate) fn set(&self, elapsed: Duration) {
        self.0.store(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a connection did last.
#[derive(Debug)]
pub(crate) struct Activity {
    clock: Arc<CoarseClock>,
    in_flight: AtomicU32,
    /// Since when it does what it does: wait for a request, send a head, refuse our bytes.
    since_ms: AtomicU64,
    in_head: AtomicBool,
    write_stuck: AtomicBool,
    /// In HTTP/2, bytes need not be a head.
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http1,
    Http2,
}

/// Whether a connection may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    LookAgainIn(Duration),
    Close,
}

impl Activity {
    pub(crate) fn new(clock: Arc<CoarseClock>, kind: Kind) -> Self {
        let since_ms = AtomicU64::new(clock.now_ms());
        Self {
            clock,
            in_flight: AtomicU32::new(0),
            since_ms,
            in_head: AtomicBool::new(false),
            write_stuck: AtomicBool::new(false),
            kind,
        }
    }

    /// A request's head is complete. The guard lives until its answer's last byte was taken.
    pub(crate) fn request(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Nothing would be lost if it closed now. In HTTP/2 the client must be told first (GOAWAY).
    fn may_close_unsaid(&self) -> bool {
        self.kind == Kind::Http1
            && self.in_flight.load(Ordering::Relaxed) == 0
            && !self.in_head.load(Ordering::Relaxed)
            && !self.write_stuck.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        self.since_ms.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    fn bytes_read(&self) {
        let idle = self.kind == Kind::Http1 && self.in_flight.load(Ordering::Relaxed) == 0;
        if idle && !self.in_head.swap(true, Ordering::Relaxed) {
            self.touch();
        }
    }

    fn wrote(&self, stuck: bool) {
        if self.write_stuck.swap(stuck, Ordering::Relaxed) != stuck || !stuck {
            self.touch();
        }
    }

    fn verdict(&self, limits: &Limits) -> Verdict {
        let is_stuck = self.write_stuck.load(Ordering::Relaxed);
        let step = limits.header_read_timeout.min(limits.idle_timeout);
        if self.in_flight.load(Ordering::Relaxed) > 0 && !is_stuck {
            return Verdict::LookAgainIn(step);
        }
        let in_head = self.in_head.load(Ordering::Relaxed) && !is_stuck;
        let allowed = if in_head { limits.header_read_timeout } else { limits.idle_timeout };
        let elapsed = self.clock.now_ms().saturating_sub(self.since_ms.load(Ordering::Relaxed));
        match allowed.checked_sub(Duration::from_millis(elapsed)) {
            Some(left) if !left.is_zero() => Verdict::LookAgainIn(left.min(step)),
            _ => Verdict::Close,
        }
    }
}

/// See [`Activity::request`].
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.touch();
    }
}

/// A body that keeps its request in flight.
#[derive(Debug)]
pub(crate) struct ServedBody {
    pub(crate) body: Body,
    pub(crate) _in_flight: InFlight,
}

impl http_body::Body for ServedBody {
    type Data = Bytes;
    type Error = farebox_core::ports::BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that can be asked to finish what it does and then close.
pub(crate) trait Drain: Future<Output = hyper::Result<()>> {
    fn drain(self: Pin<&mut Self>);
}

impl<I, S> Drain for hyper::server::conn::http1::UpgradeableConnection<I, S>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = ServedBody>,
    S::Error: Into<farebox_core::ports::BoxError>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S> Drain for hyper::server::conn::http2::Connection<I, S, hyper_util::rt::TokioExecutor>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = ServedBody>,
    S::Error: Into<farebox_core::ports::BoxError>,
    S::Future: Send + 'static,
    hyper_util::rt::TokioExecutor: hyper::rt::bounds::Http2ServerConnExec<S::Future, ServedBody>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection to its end, its limits, or the end of the gateway.
pub(crate) async fn run(
    // On the heap, once: in a future each move of it would reserve its size again, for every idle connection.
    mut connection: Pin<Box<impl Drain>>,
    activity: &Activity,
    limits: &Limits,
    mut draining: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let mut look: Pin<&mut Sleep> = pin!(tokio::time::sleep(limits.header_read_timeout.min(limits.idle_timeout)));
    let mut drained = pin!(async move {
        // The sender is dropped only together with the runtime.
        draining.wait_for(|draining| *draining).await.is_ok()
    });
    let mut is_draining = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            _ = drained.as_mut(), if !is_draining => {
                is_draining = true;
                if activity.may_close_unsaid() {
                    return Ok(());
                }
                connection.as_mut().drain();
            }
            () = look.as_mut() => match activity.verdict(limits) {
                Verdict::Close => return Ok(()),
                Verdict::LookAgainIn(left) => look.as_mut().reset(Instant::now() + left),
            },
        }
    }
}

/// I/O that notes what happens on it.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    pub(crate) io: T,
    pub(crate) activity: Arc<Activity>,
}

impl<T: hyper::rt::Read + Unpin> hyper::rt::Read for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<Result<(), std::io::Error>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_read(context, buf))?;
        this.activity.bytes_read();
        Poll::Ready(Ok(()))
    }
}

impl<T: hyper::rt::Write + Unpin> hyper::rt::Write for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize, std::io::Error>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(context, buf);
        this.activity.wrote(written.is_pending());
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize, std::io::Error>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(context, bufs);
        this.activity.wrote(written.is_pending());
        written
    }
}

//! Bodies of our answers. One concrete type, so that a pass-through allocates nothing for it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use farebox_core::ports::BoxError;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{delivery::DeliveryBody, upstream::UpstreamBody};

/// What we answer with.
#[derive(Debug, Default)]
pub(crate) enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// Our own words, sent in one piece.
    Full(Bytes),
    /// An upstream's, streamed; trailers included.
    Upstream(UpstreamBody),
    /// An upstream's to a paid request: its end waits for the books.
    Delivery(Box<DeliveryBody>),
}

impl Body {
    pub(crate) const fn empty() -> Self {
        Self::Empty
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            full @ Self::Full(_) => {
                let Self::Full(bytes) = std::mem::take(full) else { return Poll::Ready(None) };
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Upstream(body) => Pin::new(body).poll_frame(context).map_err(BoxError::from),
            Self::Delivery(body) => Pin::new(&mut **body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) => false,
            Self::Upstream(body) => body.is_end_stream(),
            Self::Delivery(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upstream(body) => body.size_hint(),
            Self::Delivery(body) => body.size_hint(),
        }
    }
}

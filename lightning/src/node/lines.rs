//! A stream of JSON, one value a line, as gRPC's gateway sends it.

use std::{fmt, future::Future, pin::Pin};

use reqwest::{RequestBuilder, Response};
use serde::{Deserialize, de::DeserializeOwned};

use super::rest::{RestError, Said, good};

/// The longest line that is read: an invoice paid in many parts names each.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Lines as they come.
pub(super) struct Lines {
    state: State,
    /// Read and not handed out yet.
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no end of a line.
    searched: usize,
}

enum State {
    /// The gateway sends not even a header before the first line, so asking is a part of waiting.
    Asking(Pin<Box<dyn Future<Output = Result<Response, RestError>> + Send>>),
    Reading(Response),
    Over,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<T> {
    Result(T),
    Error(Said),
}

impl Lines {
    /// Asks when it is first read.
    pub(super) fn of(request: RequestBuilder) -> Self {
        let asked = async { good(request.send().await?).await };
        Self { state: State::Asking(Box::pin(asked)), buffer: Vec::new(), searched: 0 }
    }

    /// The next line; `None` at the end. Losing no line if it is dropped: what has come stays here.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RestError> {
        let read = self.read().await;
        if !matches!(read, Ok(Some(_))) {
            self.state = State::Over;
        }
        read
    }

    async fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RestError> {
        loop {
            if let Some(line) = self.buffered() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return match serde_json::from_slice(&line).map_err(RestError::Garbage)? {
                    Line::Result(value) => Ok(Some(value)),
                    Line::Error(said) => Err(RestError::Said(said)),
                };
            }
            let chunk = match &mut self.state {
                State::Asking(asked) => {
                    self.state = State::Reading(asked.as_mut().await?);
                    continue;
                }
                State::Reading(response) => response.chunk().await?,
                State::Over => return Ok(None),
            };
            match chunk {
                Some(chunk) if self.buffer.len() + chunk.len() > LINE_BYTES_MAX => {
                    return Err(RestError::TooLong(LINE_BYTES_MAX));
                }
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => return Err(RestError::Wrong("the stream ended within a line".to_owned())),
            }
        }
    }

    fn buffered(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.buffer.len();
            return None;
        };
        self.searched = 0;
        let rest = self.buffer.split_off(end + 1);
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

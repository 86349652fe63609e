//! Asking every source: for their heads, for something that one of them did not find, and for what several must agree on.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{
    Agreement, Answer, Header, NoAnswer, Node, SourceError,
    ask::{self, Batch, Doubt},
    race::Attempt,
    source::Source,
};

/// How often every source's head is asked for, while anything is asked at all. It also finds out who is well again.
const HEADS_EVERY: Duration = Duration::from_secs(10);
/// How old a head may be that another one is compared with before it decides anything.
const HEAD_FRESH: Duration = Duration::from_secs(2);
/// How long the others' heads are waited for before a "no" is believed.
const HEADS_WAIT: Duration = Duration::from_secs(1);

impl Node {
    /// Asks all sources for their heads in the background, now and then.
    pub(super) fn keep_heads(&self) {
        if self.sources.len() < 2 {
            return;
        }
        {
            let mut asked_at = self.shared.heads_asked_at.lock();
            if asked_at.is_some_and(|at| at.elapsed() < HEADS_EVERY) {
                return;
            }
            *asked_at = Some(Instant::now());
        }
        let node = self.clone();
        tokio::spawn(async move { node.heads(Instant::now() + node.timeout, |_| true).await });
    }

    /// Asks those for their heads whom `which` names and who do not limit us.
    async fn heads(&self, deadline: Instant, which: impl Fn(&Source) -> bool) {
        let asked = self.sources.iter().filter(|source| !source.health().is_limited() && which(source));
        let each = asked.map(|source| async move {
            let head = self.one(&ask::head(), source, deadline).await;
            if let Err(error) = head {
                tracing::debug!(node = source.label(), error = &error as &dyn std::error::Error, "no head");
            }
        });
        futures_util::future::join_all(each).await;
    }

    pub(super) fn saw(&self, source: &Source, head: &Header) {
        let others = self.sources.iter().filter(|other| !other.is(source)).filter_map(|other| other.health().head());
        source.health().saw(head, others);
    }

    /// One source's answers, its health noted.
    pub(super) async fn one<B: Batch>(
        &self,
        batch: &B,
        source: &Source,
        deadline: Instant,
    ) -> Result<B::Answers, SourceError> {
        let (attempt, began) = (Attempt::new(source.clone(), source.health().patience(None)), Instant::now());
        let questions = batch.questions();
        match tokio::time::timeout_at(deadline, self.read(batch, &questions, source)).await {
            Ok(outcome) => attempt.end(outcome).1,
            Err(_) => attempt.end(Err(SourceError::TimedOut(began.elapsed()))).1,
        }
    }

    /// Whether `source` is behind the others, which decides what its "no" is worth.
    pub(super) async fn up_to_date(&self, source: &Source, deadline: Instant) -> Result<(), SourceError> {
        let fresh = |source: &Source, age: Duration| source.health().head().is_some_and(|seen| seen.at.elapsed() < age);
        let wait = deadline.min(Instant::now() + HEADS_WAIT);
        // The others first: what it is behind must have been there before it was asked.
        // One that rests is not waited for: the background finds out when it is well.
        let asked = |other: &Source| !other.is(source) && !other.health().is_resting() && !fresh(other, HEAD_FRESH);
        self.heads(wait, asked).await;
        if !fresh(source, HEAD_FRESH) {
            self.one(&ask::head(), source, deadline).await?;
        }
        match source.health().behind() {
            0 => Ok(()),
            behind => Err(SourceError::Lagging { behind }),
        }
    }

    /// What `first` did not find is asked of everybody else. Whoever finds it is believed; it is not there only if somebody who is not
    /// behind says so too.
    pub(super) async fn everywhere<B: Batch>(
        &self,
        batch: &B,
        first: Source,
        answers: B::Answers,
        deadline: Instant,
    ) -> Result<B::Answers, NoAnswer> {
        let mut running: FuturesUnordered<_> = self
            .sources
            .iter()
            .filter(|source| !source.is(&first) && !source.health().is_limited())
            .map(|source| async move { (source.clone(), self.one(batch, source, deadline).await) })
            .collect();
        let mut absent = vec![(first, answers)];
        while let Some((source, outcome)) = running.next().await {
            match outcome {
                Ok(answers) if batch.doubt(&answers) == Doubt::Absent => absent.push((source, answers)),
                Ok(answers) => return Ok(answers),
                Err(error) => {
                    tracing::debug!(
                        node = source.label(),
                        error = &error as &dyn std::error::Error,
                        "a source did not answer"
                    );
                }
            }
        }
        let mut lagging = None;
        for (source, answers) in absent {
            match self.up_to_date(&source, deadline).await {
                Ok(()) => return Ok(answers),
                Err(error) => lagging = Some((source, error)),
            }
        }
        Err(self.lost(method_of(batch), lagging))
    }

    /// Asks everybody until enough agree.
    pub(super) async fn poll<B>(&self, batch: &B, agreement: Agreement) -> Result<B::Answers, NoAnswer>
    where
        B: Batch,
        B::Answers: Answer,
    {
        let deadline = Instant::now() + self.timeout;
        let mut running: FuturesUnordered<_> = self
            .sources
            .iter()
            .map(|source| async move { (source.clone(), self.vote(batch, source, deadline).await) })
            .collect();
        let mut groups: Vec<Group<B::Answers>> = Vec::new();
        while let Some((source, outcome)) = running.next().await {
            match outcome {
                Ok(answers) => count(&mut groups, source, answers),
                Err(error) => {
                    tracing::debug!(
                        node = source.label(),
                        error = &error as &dyn std::error::Error,
                        "a source has no vote"
                    );
                    continue;
                }
            }
            let most = groups.iter().map(|group| group.voters.len()).max().unwrap_or(0);
            let leaders = groups.iter().filter(|group| group.voters.len() == most).count();
            if most >= agreement.0 && leaders == 1 {
                if groups.len() > 1 {
                    tracing::warn!(
                        method = method_of(batch),
                        votes = told(&groups),
                        "the sources disagree; most decide"
                    );
                }
                if let Some(at) = groups.iter().position(|group| group.voters.len() == most) {
                    return Ok(groups.swap_remove(at).answers);
                }
            }
        }
        let why = match groups.len() {
            0 | 1 => format!(
                "{} of {} sources answered, and {} have to agree",
                groups.first().map_or(0, |group| group.voters.len()),
                self.sources.len(),
                agreement.0
            ),
            _ => {
                tracing::error!(method = method_of(batch), votes = told(&groups), "the sources disagree");
                format!("the sources disagree: {}", told(&groups))
            }
        };
        Err(self.no_answer(method_of(batch), why))
    }

    /// What one source says. One that found nothing has a vote only if it is not behind.
    async fn vote<B: Batch>(&self, batch: &B, source: &Source, deadline: Instant) -> Result<B::Answers, SourceError> {
        let answers = self.one(batch, source, deadline).await?;
        if batch.doubt(&answers) != Doubt::None {
            self.up_to_date(source, deadline).await?;
        }
        Ok(answers)
    }
}

struct Group<A> {
    answers: A,
    voters: Vec<String>,
}

fn count<A: Answer>(groups: &mut Vec<Group<A>>, source: Source, answers: A) {
    let at = groups.iter().position(|group| group.answers.agrees(&answers));
    match at.map(|at| groups.swap_remove(at)) {
        Some(mut group) => {
            group.voters.push(source.label());
            groups.push(Group { answers: group.answers.merged(answers), voters: group.voters });
        }
        None => groups.push(Group { answers, voters: vec![source.label()] }),
    }
}

/// Who stands with whom.
fn told<A>(groups: &[Group<A>]) -> String {
    groups.iter().map(|group| group.voters.join(" and ")).collect::<Vec<_>>().join(" against ")
}

fn method_of<B: Batch>(batch: &B) -> &'static str {
    batch.questions().first().map_or("nothing", |question| question.method)
}

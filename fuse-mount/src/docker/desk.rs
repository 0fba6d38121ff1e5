//! Who answers which question: validation before the driver is called, the deadline around it, the check after it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::docker::answer::{Answer, HeldMount};
use crate::docker::messages::{self, Created, ID_BYTES_MAX, Mounted, Named};
use crate::docker::name::VolumeName;
use crate::docker::options::VolumeOptions;
use crate::docker::{Caller, Lookup, Refusal, VolumeDriver, visibility};

/// Engines give up a mount or a creation after 120 s and never say so: answer before.
const LONG_TIMEOUT: Duration = Duration::from_secs(110);
/// Engines give up everything else after 60 s.
const SHORT_TIMEOUT: Duration = Duration::from_secs(50);
/// How long reading two mount tables may take.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers the questions of one engine from one driver; cheap to clone.
#[derive(Clone)]
pub(super) struct Desk {
    driver: Arc<dyn VolumeDriver>,
    calls: mpsc::Sender<Infallible>,
}

impl Desk {
    /// Answers from `driver`; every running driver call holds a clone of `calls`.
    pub(super) fn new(driver: Arc<dyn VolumeDriver>, calls: mpsc::Sender<Infallible>) -> Desk {
        Desk { driver, calls }
    }

    /// Answers what `caller` asked at `path`.
    ///
    /// An empty body comes from an engine that repeats a request whose bytes it has used up; whatever was said to it would be
    /// taken for the answer to the first one. Only questions without an argument can be answered all the same.
    pub(super) async fn answer(&self, path: &str, body: &[u8], caller: Caller) -> Answer {
        match path {
            "/Plugin.Activate" => return Answer::ok(messages::activation()),
            "/VolumeDriver.Capabilities" => return Answer::ok(messages::capabilities()),
            "/VolumeDriver.List" => return Answer::ok(messages::list(&self.driver.list())),
            _ if body.iter().all(u8::is_ascii_whitespace) => return Answer::HangUp,
            _ => {}
        }
        let answered = match path {
            "/VolumeDriver.Get" => self.get(body),
            "/VolumeDriver.Path" => self.path(body),
            "/VolumeDriver.Create" => self.create(body).await,
            "/VolumeDriver.Remove" => self.remove(body).await,
            "/VolumeDriver.Mount" => self.mount(body, caller).await,
            "/VolumeDriver.Unmount" => self.unmount(body).await,
            _ => Err(Answer::error(404, &format!("remora is a volume driver and does not know {path:.64}"))),
        };
        answered.unwrap_or_else(|refused| refused)
    }

    fn get(&self, body: &[u8]) -> Result<Answer, Answer> {
        let named: Named = read(body)?;
        let name = validate(&named.name)?;
        Ok(match self.driver.get(&name) {
            Lookup::Found(view) => Answer::ok(messages::volume(view)),
            Lookup::Absent => absent(&name),
            Lookup::Unknown => Answer::HangUp,
        })
    }

    fn path(&self, body: &[u8]) -> Result<Answer, Answer> {
        let named: Named = read(body)?;
        let name = validate(&named.name)?;
        Ok(match self.driver.get(&name) {
            Lookup::Found(view) => {
                let path = view.mountpoint.as_deref().and_then(|path| path.to_str()).unwrap_or("");
                Answer::ok(messages::mountpoint(path))
            }
            Lookup::Absent => absent(&name),
            Lookup::Unknown => Answer::HangUp,
        })
    }

    async fn create(&self, body: &[u8]) -> Result<Answer, Answer> {
        let created: Created = read(body)?;
        let name = validate(&created.name)?;
        let options = VolumeOptions::parse(created.options.unwrap_or_default())
            .map_err(|error| Answer::error(400, &error.to_string()))?;
        let driver = Arc::clone(&self.driver);
        let busy = format!("volume {name:?} is still being created after {} s", LONG_TIMEOUT.as_secs());
        Ok(self.finish(LONG_TIMEOUT, busy, async move { driver.create(name, options).await }).await)
    }

    async fn remove(&self, body: &[u8]) -> Result<Answer, Answer> {
        let named: Named = read(body)?;
        let name = validate(&named.name)?;
        let driver = Arc::clone(&self.driver);
        let busy = format!("volume {name:?} is still being removed after {} s", SHORT_TIMEOUT.as_secs());
        Ok(self.finish(SHORT_TIMEOUT, busy, async move { driver.remove(name).await }).await)
    }

    async fn unmount(&self, body: &[u8]) -> Result<Answer, Answer> {
        let (name, id) = read_mounted(body)?;
        let driver = Arc::clone(&self.driver);
        let busy = format!("volume {name:?} is still being released after {} s", SHORT_TIMEOUT.as_secs());
        Ok(self.finish(SHORT_TIMEOUT, busy, async move { driver.unmount(name, id).await }).await)
    }

    async fn mount(&self, body: &[u8], caller: Caller) -> Result<Answer, Answer> {
        let (name, id) = read_mounted(body)?;
        let busy = format!(
            "volume {name:?} could not be mounted within {} s; `remora volume inspect {name}` says what it waits for",
            LONG_TIMEOUT.as_secs()
        );
        let (driver, calls) = (Arc::clone(&self.driver), self.calls.clone());
        let outcome =
            self.run(LONG_TIMEOUT, async move { mount_checked(driver, calls, name, id, caller).await });
        Ok(match outcome.await {
            Outcome::Done(Ok((path, held))) => Answer::Mounted(messages::mountpoint(&path), Box::new(held)),
            Outcome::Done(Err(refusal)) => Answer::error(500, &refusal.0),
            Outcome::Late => Answer::error(500, &busy),
            Outcome::Lost => Answer::error(500, &lost()),
        })
    }

    /// Runs a call that yields nothing and puts its outcome into words.
    async fn finish(
        &self,
        limit: Duration,
        busy: String,
        call: impl Future<Output = Result<(), Refusal>> + Send + 'static,
    ) -> Answer {
        match self.run(limit, call).await {
            Outcome::Done(Ok(())) => Answer::ok(messages::done()),
            Outcome::Done(Err(refusal)) => Answer::error(500, &refusal.0),
            Outcome::Late => Answer::error(500, &busy),
            Outcome::Lost => Answer::error(500, &lost()),
        }
    }

    /// Runs `call` to its end in a task of its own and waits for it at most `limit`. What it yields is dropped if nobody
    /// waits any more, because the time is up or because this future was dropped with its connection.
    async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Outcome<T> {
        let (sender, receiver) = oneshot::channel();
        let calls = self.calls.clone();
        tokio::spawn(async move {
            let _ = sender.send(call.await);
            drop(calls);
        });
        match timeout(limit, receiver).await {
            Ok(Ok(value)) => Outcome::Done(value),
            Ok(Err(_)) => Outcome::Lost,
            Err(_) => Outcome::Late,
        }
    }
}

/// How a driver call ended for the one who waited.
enum Outcome<T> {
    /// It returned.
    Done(T),
    /// It still runs.
    Late,
    /// It panicked.
    Lost,
}

/// Mounts, and makes sure that what is handed out is a mount and that the caller sees it.
async fn mount_checked(
    driver: Arc<dyn VolumeDriver>,
    calls: mpsc::Sender<Infallible>,
    name: String,
    id: String,
    caller: Caller,
) -> Result<(String, HeldMount), Refusal> {
    let path = driver.mount(name.clone(), id.clone(), caller).await?;
    let held = HeldMount::new(driver, name.clone(), id, calls);
    let text = path.to_str().map(str::to_owned);
    check_visible(&name, path, caller).await?;
    let text =
        text.ok_or_else(|| Refusal(format!("volume {name:?} is mounted at a path that is not UTF-8")))?;
    Ok((text, held))
}

async fn check_visible(name: &str, path: PathBuf, caller: Caller) -> Result<(), Refusal> {
    let checking = tokio::task::spawn_blocking(move || visibility::check(&path, caller));
    match timeout(VISIBILITY_TIMEOUT, checking).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(hidden))) => Err(Refusal(format!("volume {name:?} is not handed out: {hidden}"))),
        Ok(Err(_)) | Err(_) => {
            Err(Refusal(format!("volume {name:?} is not handed out: the mount table could not be read")))
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    messages::read(body).map_err(|text| Answer::error(400, &text))
}

fn read_mounted(body: &[u8]) -> Result<(String, String), Answer> {
    let Mounted { name, id } = read(body)?;
    if id.len() > ID_BYTES_MAX {
        return Err(Answer::error(
            400,
            &format!("the mount id has {} bytes, the most is {ID_BYTES_MAX}", id.len()),
        ));
    }
    Ok((validate(&name)?, id))
}

/// A name that cannot be a volume's is no secret: saying so makes an engine forget nothing.
fn validate(name: &str) -> Result<String, Answer> {
    match VolumeName::new(name) {
        Ok(name) => Ok(name.into_string()),
        Err(error) => Err(Answer::error(400, &error.to_string())),
    }
}

fn absent(name: &str) -> Answer {
    Answer::error(404, &format!("remora has no volume {name:?}; `remora volume ls` lists those it has"))
}

fn lost() -> String {
    "the remora daemon failed while doing this; its log says how".to_owned()
}

#[cfg(test)]
mod tests {
    use super::Desk;
    use crate::docker::answer::Answer;
    use crate::docker::options::VolumeOptions;
    use crate::docker::{Caller, Lookup, Refusal, VolumeDriver, VolumeView};
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use std::path::PathBuf;
    use std::sync::Arc;
    use tokio::sync::{Semaphore, mpsc};

    /// Mounts once the gate is open and tells of every unmount.
    struct Slow {
        gate: Semaphore,
        unmounted: mpsc::UnboundedSender<String>,
    }

    impl VolumeDriver for Slow {
        fn list(&self) -> Vec<VolumeView> {
            Vec::new()
        }

        fn get(&self, _: &str) -> Lookup {
            Lookup::Unknown
        }

        fn create(&self, _: String, _: VolumeOptions) -> BoxFuture<'_, Result<(), Refusal>> {
            async { panic!("a bug in the driver") }.boxed()
        }

        fn remove(&self, _: String) -> BoxFuture<'_, Result<(), Refusal>> {
            std::future::pending().boxed()
        }

        fn mount(&self, _: String, _: String, _: Caller) -> BoxFuture<'_, Result<PathBuf, Refusal>> {
            async {
                self.gate.acquire().await.unwrap().forget();
                Ok(PathBuf::from("/proc"))
            }
            .boxed()
        }

        fn unmount(&self, _: String, id: String) -> BoxFuture<'_, Result<(), Refusal>> {
            self.unmounted.send(id).unwrap();
            async { Ok(()) }.boxed()
        }
    }

    fn desk() -> (Desk, Arc<Slow>, mpsc::UnboundedReceiver<String>) {
        let (unmounted, received) = mpsc::unbounded_channel();
        let driver = Arc::new(Slow { gate: Semaphore::new(0), unmounted });
        let (calls, _) = mpsc::channel(1);
        (Desk::new(Arc::clone(&driver) as Arc<dyn VolumeDriver>, calls), driver, received)
    }

    const MOUNT: &[u8] = b"{\"Name\":\"v\",\"ID\":\"7\"}";

    fn error_in(answer: Answer) -> String {
        match answer {
            Answer::Json(500, value) => value["Err"].as_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mount_that_takes_too_long_is_answered_in_time_and_taken_back_when_it_comes() {
        let (desk, driver, mut unmounted) = desk();
        let answer = desk.answer("/VolumeDriver.Mount", MOUNT, Caller::default()).await;
        assert!(error_in(answer).contains("within 110 s"));
        assert!(unmounted.try_recv().is_err());
        driver.gate.add_permits(1);
        assert_eq!(unmounted.recv().await.unwrap(), "7");
    }

    #[tokio::test]
    async fn an_answer_that_never_leaves_takes_its_mount_back() {
        let (desk, driver, mut unmounted) = desk();
        driver.gate.add_permits(1);
        let answer = desk.answer("/VolumeDriver.Mount", MOUNT, Caller::default()).await;
        assert!(matches!(answer, Answer::Mounted(..)));
        drop(answer.into_response().unwrap());
        assert_eq!(unmounted.recv().await.unwrap(), "7");
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_hangs_or_fails_is_answered_for() {
        let (desk, _, _) = desk();
        let hangs = desk.answer("/VolumeDriver.Remove", MOUNT, Caller::default()).await;
        assert!(error_in(hangs).contains("still being removed"));
        let fails = desk.answer("/VolumeDriver.Create", MOUNT, Caller::default()).await;
        assert!(error_in(fails).contains("its log says how"));
    }
}
